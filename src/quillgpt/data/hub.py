"""Data sets of the Hugging Face hub, streamed through `datasets`: rows arrive as they are used, nothing is kept.

With a path, local parquet files of the same columns take the hub's place and go through the same code.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quillgpt.data.text_files import find_files
from quillgpt.errors import ConfigError, DataError, nearest


@dataclass(frozen=True, kw_only=True)
class HubData:
    """A data set on the hub, or local parquet files in its place; subset "" is its only one."""

    name: str
    subset: str
    files: list[Path]
    field: str

    def texts(self) -> Iterator[str]:
        """The text of each row of the training split, in order."""
        for number, row in enumerate(_rows(self._load(), self.place)):
            if self.field not in row:
                has = f"{nearest(self.field, row)}; it has {', '.join(row)}"
                raise DataError(f"{self.place}: no column {self.field!r}{has}; choose one with --text-field")
            if not isinstance(row[self.field], str):
                kind = type(row[self.field]).__name__
                raise DataError(f"{self.place}: row {number:,}: {self.field!r} is a {kind}, expected a string")
            yield row[self.field]

    @property
    def place(self) -> str:
        """How messages name the data."""
        return str(self.files[0].parent) if self.files else f"{self.name} (Hugging Face hub)"

    def _load(self) -> Iterable[dict[str, Any]]:
        try:
            import datasets
        except ImportError:
            raise ConfigError("streaming needs datasets, which is missing: pip install 'quillgpt[data]'") from None
        try:
            if self.files:
                names = [str(file) for file in self.files]
                return datasets.load_dataset("parquet", data_files=names, split="train", streaming=True)
            return datasets.load_dataset(self.name, self.subset or None, split="train", streaming=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise _failure(self.place, error) from None


def hub_data(name: str, *, subset: str, path: str, field: str) -> HubData:
    """The hub's data set, or the parquet files at `path` when one is given."""
    found = find_files(path, source=name, suffix=".parquet") if path else []
    return HubData(name=name, subset=subset, files=found, field=field)


def _rows(rows: Iterable[dict[str, Any]], place: str) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except (OSError, ValueError, RuntimeError) as error:
        raise _failure(place, error) from None


def _failure(place: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    remedy = "run it again to continue, or give the parquet files with --path FOLDER"
    return DataError(f"{place}: cannot be read: {reason}; {remedy}")
