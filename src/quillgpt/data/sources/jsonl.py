"""Entry `jsonl`: files with one JSON object a line, the text in one of its fields. A document is a line."""

from collections.abc import Iterator

from quillgpt.config import DataConfig
from quillgpt.data.document import SourceStats, text_blocks
from quillgpt.data.sources.files import (
    FileSource,
    decode_line,
    find_files,
    kind_of,
    numbered_lines,
    parse_object,
    unreadable,
    without_surrogates,
)
from quillgpt.errors import DataError, nearest


class Jsonl(FileSource):
    """The lines of the files that `path` names; empty lines are skipped."""

    description = "texts in JSON lines"
    licence = "that of your files"

    def __init__(self, config: DataConfig) -> None:
        self.files = find_files(config.path, source="jsonl", suffix=".jsonl")
        self.field = config.text_field
        self.errors = config.errors

    def documents(self, stats: SourceStats) -> Iterator[Iterator[str]]:
        """Yield each line's text; a line that is not JSON or has no text names its file and number."""
        for path in self.files:
            try:
                with path.open("rb") as file:
                    for number, offset, line in numbered_lines(file, str(path)):
                        content = decode_line(line, path=path, offset=offset, errors=self.errors, stats=stats)
                        place = f"{path}:{number}"
                        text = without_surrogates(
                            self._text(content, place), place=place, errors=self.errors, stats=stats
                        )
                        yield text_blocks(text)
            except OSError as error:
                raise unreadable(path, error) from None

    def _text(self, line: str, place: str) -> str:
        record = parse_object(line, place, f"an object with the field {self.field!r}")
        if self.field not in record:
            has = f"{nearest(self.field, record)}; it has {', '.join(record) or 'none'}"
            raise DataError(f"{place}: no field {self.field!r}{has}; choose one with --text-field")
        if not isinstance(record[self.field], str):
            got = f"the field {self.field!r} is {kind_of(record[self.field])}"
            raise DataError(f"{place}: {got}, expected a string; correct or remove the line")
        return record[self.field]
