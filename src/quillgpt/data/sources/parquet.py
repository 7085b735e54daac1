"""Entry `parquet`: files with the text in one column, read a few rows at a time. A document is a row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quillgpt.config import DataConfig
from quillgpt.data.document import SourceStats, TextSource, text_blocks
from quillgpt.data.sources.files import find_files
from quillgpt.errors import DataError, import_optional, nearest

ROWS_AT_A_TIME = 64


class Parquet(TextSource):
    """The rows of the files that `path` names."""

    description = "texts in Parquet files"
    licence = "that of your files"

    def __init__(self, config: DataConfig) -> None:
        self.files = find_files(config.path, source="parquet", suffix=".parquet")
        self.field = config.text_field
        for file in self.files:
            open_parquet(file, self.field).close()

    def documents(self, stats: SourceStats) -> Iterator[Iterator[str]]:
        """Yield each row's text."""
        for file in self.files:
            for text in read_column(file, self.field):
                yield text_blocks(text)

    def text_bytes(self) -> int:
        """Size of the column before compression."""
        return sum(column_bytes(file, self.field) for file in self.files)


def open_parquet(path: Path, field: str) -> Any:
    """Open a parquet file (pyarrow's `ParquetFile`) that has the field as a column of strings."""
    pyarrow, parquet = (import_optional(name, extra="data") for name in ("pyarrow", "pyarrow.parquet"))
    try:
        file = parquet.ParquetFile(path, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    schema = file.schema_arrow
    if field not in schema.names:
        has = f"{nearest(field, schema.names)}; it has {', '.join(schema.names)}"
        raise DataError(f"{path}: no column {field!r}{has}; choose one with --text-field")
    kind = schema.field(field).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        got = f"the column {field!r} is of type {kind}"
        raise DataError(f"{path}: {got}, expected string; choose one with --text-field")
    return file


def read_column(path: Path, field: str) -> Iterator[str]:
    """Yield the strings of a column, in order."""
    row = 0
    with open_parquet(path, field) as file:
        try:
            for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME, columns=[field], use_threads=False):
                for text in batch.column(0).to_pylist():
                    if text is None:
                        raise DataError(f"{path}: row {row:,} has no text (null); correct or remove the row")
                    yield text
                    row += 1
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from None


def column_bytes(path: Path, field: str) -> int:
    """Return the bytes of a column before compression, as the file's footer says."""
    with open_parquet(path, field) as file:
        index = file.schema.names.index(field)
        groups = range(file.metadata.num_row_groups)
        return sum(file.metadata.row_group(group).column(index).total_uncompressed_size for group in groups)


def first_line(error: Exception) -> str:
    """Return the first line of another library's error, or the name of its type."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a readable parquet file: {first_line(error)}; fetch or write it again")
