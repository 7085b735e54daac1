"""Entry `openwebtext`: 8 million web pages that Reddit linked to, the open remake of GPT-2's text [Gokaslan 2019]."""

from collections.abc import Iterator

from quillgpt.config import DataConfig
from quillgpt.data.document import Tally, blocks_of
from quillgpt.data.hub import hub_data
from quillgpt.data.sources.parquet import column_bytes

HUB_NAME = "Skylion007/openwebtext"
TEXT_BYTES = 39_800_000_000
TOKENS = 9_040_000_000  # with GPT-2's tokenizer; from nanoGPT's data/openwebtext/readme.md


class OpenWebText:
    """The rows of the hub's data set, or of local parquet files at `path`."""

    licence = "CC0-1.0 (the collection; the pages belong to their authors)"
    held_out_fraction = 0.0005  # nanoGPT's share

    def __init__(self, config: DataConfig) -> None:
        self.data = hub_data(HUB_NAME, subset="", path=config.path, field=config.text_field)

    def documents(self, tally: Tally) -> Iterator[Iterator[str]]:
        """Each row's text."""
        for text in self.data.texts():
            yield blocks_of(text)

    def text_bytes(self) -> int:
        """Size of the text, that of the whole data set from its page."""
        return sum(column_bytes(file, self.data.field) for file in self.data.files) or TEXT_BYTES
