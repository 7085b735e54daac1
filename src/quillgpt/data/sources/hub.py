"""Data sets of the Hugging Face hub, streamed through `datasets`: rows arrive as they are used, nothing is kept.

With a path, local parquet files with the same columns are read instead, by the same code.
"""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from quillgpt.config import DataConfig
from quillgpt.data.document import SourceStats, TextSource, text_blocks
from quillgpt.data.sources.files import find_files
from quillgpt.data.sources.parquet import column_bytes, first_line
from quillgpt.errors import DataError, import_optional, nearest


class HubSource(TextSource):
    """The rows of a data set's training split; a document is a row.

    hub_name: owner/name on the hub. hub_sizes: (bytes of text, GPT-2 tokens) of each subset; "" if there is only one.
    """

    hub_name: ClassVar[str]
    hub_sizes: ClassVar[dict[str, tuple[int, int]]]

    def __init__(self, config: DataConfig) -> None:
        self.subset = config.subset if self.has_subsets else ""
        self.field = config.text_field
        self.files = find_files(config.path, source=self.hub_name, suffix=".parquet") if config.path else []
        self.place = str(self.files[0].parent) if self.files else f"{self.hub_name} (Hugging Face hub)"

    def documents(self, stats: SourceStats) -> Iterator[Iterator[str]]:
        """Yield each row's text."""
        for number, row in enumerate(self._rows()):
            if self.field not in row:
                has = f"{nearest(self.field, row)}; it has {', '.join(row)}"
                raise DataError(f"{self.place}: no column {self.field!r}{has}; choose one with --text-field")
            if not isinstance(row[self.field], str):
                got = f"{self.field!r} is a {type(row[self.field]).__name__}"
                raise DataError(f"{self.place}: row {number:,}: {got}, expected a string")
            yield text_blocks(row[self.field])

    def text_bytes(self) -> int:
        """Size of the column in local files, or that of the data set on the hub."""
        return sum(column_bytes(file, self.field) for file in self.files) or self.hub_sizes[self.subset][0]

    @classmethod
    def download_size(cls, config: DataConfig) -> str:
        """Size of the text on the hub and of its tokens, unless local files are given."""
        sizes = cls.hub_sizes.get(config.subset if cls.has_subsets else "")
        if config.path or not sizes:
            return ""
        return f"{sizes[0] / 1e9:,.0f} GB of text, which become {2 * sizes[1] / 1e9:,.0f} GB of tokens"

    def _rows(self) -> Iterator[dict[str, Any]]:
        datasets = import_optional("datasets", extra="data")
        try:
            if self.files:
                names = [str(file) for file in self.files]
                rows: Iterable[dict[str, Any]] = datasets.load_dataset(
                    "parquet", data_files=names, split="train", streaming=True
                )
            else:
                rows = datasets.load_dataset(self.hub_name, self.subset or None, split="train", streaming=True)
            yield from rows
        except (OSError, ValueError, RuntimeError) as error:
            remedy = "run it again to continue, or give the parquet files with --path FOLDER"
            raise DataError(f"{self.place}: cannot be read: {first_line(error)}; {remedy}") from None
