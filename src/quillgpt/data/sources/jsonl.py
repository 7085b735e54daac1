"""Entry `jsonl`: files with one JSON object a line, the text in one of its fields. A document is a line."""

from collections.abc import Iterator
from pathlib import Path

from quillgpt.config import DataConfig
from quillgpt.data.document import HELD_OUT_FRACTION, Tally, blocks_of
from quillgpt.data.json_lines import kind_of, numbered_lines, parse_object
from quillgpt.data.text_files import decode_line, find_files, total_bytes, unreadable, without_surrogates
from quillgpt.errors import DataError, nearest


class Jsonl:
    """The lines of the files that `path` names; empty lines are passed over."""

    licence = "that of your files"
    held_out_fraction = HELD_OUT_FRACTION

    def __init__(self, config: DataConfig) -> None:
        self.files = find_files(config.path, source="jsonl", suffix=".jsonl")
        self.field = config.text_field
        self.errors = config.errors

    def documents(self, tally: Tally) -> Iterator[Iterator[str]]:
        """Each line's text; a line that is not JSON or has no text names its file and number."""
        for file in self.files:
            for number, offset, line in _lines(file):
                content = decode_line(line, path=file, offset=offset, errors=self.errors, tally=tally)
                where = f"{file}:{number}"
                text = self._text(content, where)
                yield blocks_of(without_surrogates(text, where=where, errors=self.errors, tally=tally))

    def text_bytes(self) -> int:
        """Size of the files, somewhat more than their text."""
        return total_bytes(self.files)

    def _text(self, line: str, where: str) -> str:
        record = parse_object(line, where, f"an object with the field {self.field!r}")
        if self.field not in record:
            has = f"{nearest(self.field, record)}; it has {', '.join(record) or 'none'}"
            raise DataError(f"{where}: no field {self.field!r}{has}; choose one with --text-field")
        if not isinstance(record[self.field], str):
            is_kind = f"{where}: the field {self.field!r} is {kind_of(record[self.field])}"
            raise DataError(f"{is_kind}, expected a string; mend or remove the line")
        return record[self.field]


def _lines(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number, byte offset and content of each line that is not empty."""
    try:
        with file.open("rb") as lines:
            yield from numbered_lines(lines, str(file))
    except OSError as error:
        raise unreadable(file, error) from None
