"""Entry `fineweb-edu`: web pages that a classifier found educational [Penedo 2024]; `sample-10BT` unless asked."""

from collections.abc import Iterator

from quillgpt.config import DataConfig
from quillgpt.data.document import Tally, blocks_of
from quillgpt.data.hub import hub_data
from quillgpt.data.shard import SHARD_TOKENS
from quillgpt.data.sources.parquet import column_bytes
from quillgpt.errors import pick

HUB_NAME = "HuggingFaceFW/fineweb-edu"
# GPT-2 tokens in each subset, from the data set's page; a token is about 4.7 bytes of its text
SUBSET_TOKENS = {
    "sample-10BT": 10_000_000_000,
    "sample-100BT": 100_000_000_000,
    "sample-350BT": 350_000_000_000,
    "default": 1_300_000_000_000,
}
BYTES_PER_TOKEN = 4.7
SHARD_FILL = 0.95  # the hash holds out a fraction only on average; so the held-out split stays one shard


class FineWebEdu:
    """The rows of a subset, or of local parquet files at `path`; about one shard of tokens is held out."""

    licence = "ODC-By-1.0"

    def __init__(self, config: DataConfig) -> None:
        self.subset_tokens = pick(SUBSET_TOKENS, config.subset, "subset")
        self.held_out_fraction = SHARD_FILL * SHARD_TOKENS / self.subset_tokens
        self.data = hub_data(HUB_NAME, subset=config.subset, path=config.path, field=config.text_field)

    def documents(self, tally: Tally) -> Iterator[Iterator[str]]:
        """Each row's text."""
        for text in self.data.texts():
            yield blocks_of(text)

    def text_bytes(self) -> int:
        """Size of the text, that of a whole subset from its tokens."""
        local = sum(column_bytes(file, self.data.field) for file in self.data.files)
        return local or int(self.subset_tokens * BYTES_PER_TOKEN)
