"""Entry `openwebtext`: 8 million web pages linked from Reddit, the open remake of GPT-2's text [Gokaslan 2019]."""

from typing import ClassVar

from quillgpt.data.sources.hub import HubSource


class OpenWebText(HubSource):
    """The rows of the data set on the hub, or of local parquet files at `path`."""

    description = "OpenWebText"
    licence = "CC0-1.0 (the collection; the pages belong to their authors)"
    val_fraction = 0.0005  # as nanoGPT
    hub_name = "Skylion007/openwebtext"
    hub_sizes: ClassVar = {"": (39_800_000_000, 9_040_000_000)}  # tokens: nanoGPT's data/openwebtext/readme.md
