"""Entry `fineweb-edu`: web pages that a classifier found educational [Penedo 2024]; by default `sample-10BT`."""

from typing import ClassVar

from quillgpt.config import DataConfig
from quillgpt.data.shards import SHARD_TOKENS
from quillgpt.data.sources.hub import HubSource
from quillgpt.errors import pick

BYTES_PER_TOKEN = 4.7
# GPT-2 tokens in each subset, from the data set's page
SUBSET_TOKENS = {
    "sample-10BT": 10_000_000_000,
    "sample-100BT": 100_000_000_000,
    "sample-350BT": 350_000_000_000,
    "default": 1_300_000_000_000,
}
SHARD_FILL = 0.95  # the hash chooses a fraction only on average; this keeps the validation split in one shard


class FineWebEdu(HubSource):
    """The rows of a subset, or of local parquet files at `path`; about one shard of tokens is for validation."""

    description = "FineWeb-Edu"
    licence = "ODC-By-1.0"
    has_subsets = True
    hub_name = "HuggingFaceFW/fineweb-edu"
    hub_sizes: ClassVar = {subset: (int(tokens * BYTES_PER_TOKEN), tokens) for subset, tokens in SUBSET_TOKENS.items()}

    def __init__(self, config: DataConfig) -> None:
        self.val_fraction = SHARD_FILL * SHARD_TOKENS / pick(SUBSET_TOKENS, config.subset, "subset")
        super().__init__(config)
