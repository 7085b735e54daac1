"""The data of a task: records of JSON from a file, or from inside an archive, each checked field by field.

A task's file is looked for in one directory: by its own path, and inside the archive that was downloaded there.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from quillgpt.data.json_lines import kind_of, numbered_lines, parse_object
from quillgpt.data.text_files import LONE_SURROGATE, require_regular
from quillgpt.errors import DataError, nearest


@dataclass(frozen=True, kw_only=True)
class Record:
    """One object of a file; `where` is FILE:LINE, for errors."""

    where: str
    values: dict[str, Any]

    def text(self, field: str) -> str:
        """The string of a field."""
        value = self._value(field, "a string")
        if not isinstance(value, str) or LONE_SURROGATE.search(value):
            raise self._other(field, value, "a string of whole characters")
        return value

    def texts(self, field: str) -> list[str]:
        """The strings of a field, at least one."""
        value = self._value(field, "a list of strings")
        if not isinstance(value, list) or not value:
            raise self._other(field, value, "a list of strings")
        return [
            Record(where=f"{self.where}: {field}", values={str(i): text}).text(str(i)) for i, text in enumerate(value)
        ]

    def index(self, field: str, count: int, *, first: int = 0) -> int:
        """The number of a field, which may be written as a string, as an index into `count` things."""
        value = self._value(field, "a number")
        known = {str(number): number - first for number in range(first, first + count)}
        if str(value) not in known or isinstance(value, bool):
            raise self._other(field, value, f"one of {', '.join(known)}")
        return known[str(value)]

    def records(self, field: str) -> list["Record"]:
        """The objects in a list, at least one; errors name the list, and the place in it."""
        value = self._value(field, "a list of objects")
        if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
            raise self._other(field, value, "a list of objects")
        return [Record(where=f"{self.where}: {field}[{place}]", values=part) for place, part in enumerate(value)]

    def record(self, field: str) -> "Record":
        """The object in a field."""
        value = self._value(field, "an object")
        if not isinstance(value, dict):
            raise self._other(field, value, "an object")
        return Record(where=f"{self.where}: {field}", values=value)

    @property
    def key(self) -> str:
        """SHA-256 of the content: the same wherever the record was read."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()

    def _value(self, field: str, expected: str) -> Any:
        if field not in self.values:
            has = f"{nearest(field, self.values)}; it has {', '.join(self.values) or 'none'}"
            raise DataError(f"{self.where}: no field {field!r}, expected {expected}{has}")
        return self.values[field]

    def _other(self, field: str, value: object, expected: str) -> DataError:
        got = repr(value) if isinstance(value, str | int) and len(repr(value)) <= 40 else kind_of(value)
        return DataError(f"{self.where}: the field {field!r} is {got}, expected {expected}; mend or remove the line")


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """Where a task's files are looked for: each by its path in a directory, or inside the archive that lies there."""

    directory: Path
    archive: str
    """the name of the archive, "" where there is none"""
    url: str
    """where both can be had"""

    def records(self, path: str) -> Iterator[Record]:
        """The objects of a file of JSON lines, front to back."""
        with self._opened(path) as (name, file):
            for number, _, line in numbered_lines(file, name):
                where = f"{name}:{number}"
                yield Record(where=where, values=parse_object(line, where, "an object with the fields of this task"))

    def lines(self, path: str) -> list[tuple[str, str]]:
        """The lines of a small text file that are not empty, each with its FILE:LINE."""
        with self._opened(path) as (name, file):
            return [
                (f"{name}:{number}", line.decode(errors="replace").strip())
                for number, _, line in numbered_lines(file, name)
            ]

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[str, BinaryIO]]:
        plain, archive = self.directory / path, self.directory / self.archive
        is_packed = self.archive != "" and archive.exists() and not plain.exists()
        name = f"{archive}/{path}" if is_packed else str(plain)
        try:
            if is_packed:
                with zipfile.ZipFile(archive) as members, members.open(path) as file:
                    yield name, cast(BinaryIO, file)
            else:
                if not plain.exists():
                    remedy = f"name no directory to have it fetched, or put it there from {self.url}"
                    raise DataError(f"{plain}: there is no such file; {remedy}")
                require_regular(plain)
                with plain.open("rb") as file:
                    yield name, file
        except KeyError:
            raise DataError(f"{archive}: the archive holds no {path}; delete it, it is fetched again") from None
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{name}: cannot be read: {error}; delete it, it is fetched again") from None
