"""Files of a source: finding them, reading them as UTF-8 with every character unchanged, and lines of JSON."""

import codecs
import errno
import glob
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from quillgpt.data.document import SourceStats, TextSource
from quillgpt.errors import ConfigError, DataError

BLOCK_BYTES = 1 << 20
LINE_BYTES = 1 << 26  # a parsed line takes up to 9 times its size in memory
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
REPLACEMENT = "\ufffd"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
FILE_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
FILE_KINDS |= dict.fromkeys((stat.S_IFCHR, stat.S_IFBLK), "a device")
JSON_KINDS: dict[type, str] = {list: "a list", dict: "an object", str: "a string", bool: "true or false"}
JSON_KINDS[type(None)] = "null"


class FileSource(TextSource):
    """A source whose documents are in files, which subclasses find."""

    files: list[Path]

    def text_bytes(self) -> int:
        """Size of the files."""
        return sum(file.stat().st_size for file in self.files)


def find_files(path: str, *, source: str, suffix: str = "", left_out: Collection[str] = ()) -> list[Path]:
    """Return the files that `--path` names (a file, a folder, or a glob) in a fixed order; each is a regular file.

    A folder means the files below it that end in `suffix`, without hidden ones and without the folders `left_out`;
    links to folders are not followed.
    """
    if not path:
        raise ConfigError(f"the source {source} needs to know its files; give --path FILE, FOLDER or 'GLOB'")
    place, missing = Path(path), ""
    if place.is_dir():
        found = [file for file in _files_below(place, left_out) if file.name.endswith(suffix)]
        missing = f"the folder holds no {f'*{suffix} files' if suffix else 'files'}"
    elif glob.has_magic(path) and not os.path.lexists(path):
        found = [Path(name) for name in glob.glob(path, recursive=True) if not Path(name).is_dir()]
        missing = "no file matches this glob"
    else:
        found = [place]
    if not found:
        raise DataError(f"{path}: {missing}; give --path FILE, FOLDER or 'GLOB'")
    for file in found:
        require_regular(file)
    return sorted(found, key=lambda file: file.as_posix())


def require_regular(path: Path) -> None:
    """Refuse a file that is missing, a loop of links, or would block or never end when read (a pipe, a device)."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        reason = "a loop of symbolic links" if error.errno == errno.ELOOP else _reason(error)
        raise DataError(f"{path}: {reason}; expected a regular file") from None
    if kind != stat.S_IFREG:
        raise DataError(f"{path}: {FILE_KINDS.get(kind, 'a special file')}, expected a regular file")


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, a block at a time."""
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file that the system does not let us read."""
    return DataError(f"{path}: cannot be read: {_reason(error)}; check its permissions")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _files_below(folder: Path, left_out: Collection[str]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or folder), error)

    for directory, folders, names in os.walk(folder, onerror=refuse, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        yield from [Path(directory) / name for name in names if not name.startswith(".")]


def decoded(blocks: Iterable[bytes], *, path: Path, errors: str, stats: SourceStats) -> Iterator[str]:
    """Yield the text of UTF-8 bytes. Other bytes are an error with their offset, or replaced by U+FFFD and counted."""
    pending, offset = b"", 0
    for block in blocks:
        content = pending + block
        text, used = _decode(content, path=path, offset=offset, errors=errors, stats=stats, final=False)
        pending, offset = content[used:], offset + used
        yield text
    if pending:
        yield decode_line(pending, path=path, offset=offset, errors=errors, stats=stats)


def decode_line(line: bytes, *, path: Path, offset: int, errors: str, stats: SourceStats) -> str:
    """Return the text of one line that begins at byte `offset` of its file."""
    return _decode(line, path=path, offset=offset, errors=errors, stats=stats, final=True)[0]


def _decode(
    content: bytes, *, path: Path, offset: int, errors: str, stats: SourceStats, final: bool
) -> tuple[str, int]:
    try:
        return codecs.utf_8_decode(content, "strict", final)
    except UnicodeDecodeError as error:
        if errors == "strict":
            place = f"byte {offset + error.start:,} (0x{content[error.start]:02x})"
            raise DataError(f"{path}: not UTF-8 at {place}; convert the file or add --errors replace") from None
    text, used = codecs.utf_8_decode(content, "replace", final)
    already_there = codecs.utf_8_decode(content[:used], "ignore", True)[0].count(REPLACEMENT)
    stats.replacements += text.count(REPLACEMENT) - already_there
    return text, used


def without_surrogates(text: str, *, place: str, errors: str, stats: SourceStats) -> str:
    r"""Return the text, checked for halves of characters, which JSON can contain (\\ud83d) and UTF-8 cannot."""
    found = None if text.isascii() else LONE_SURROGATE.search(text)
    if found is None:
        return text
    if errors == "strict":
        half = f"U+{ord(found.group()):04X} at character {found.start():,}"
        raise DataError(f"{place}: the text holds half a character ({half}); correct it or add --errors replace")
    text, count = LONE_SURROGATE.subn(REPLACEMENT, text)
    stats.replacements += count
    return text


def numbered_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, byte offset and content of each line that is not empty; `name` is what errors call the file."""
    number = offset = 0
    while line := file.readline(LINE_BYTES + 1):
        number += 1
        if len(line) > LINE_BYTES:
            raise DataError(f"{name}:{number}: a line of more than {LINE_BYTES:,} bytes; split it, or use text")
        mark = len(BYTE_ORDER_MARK) if offset == 0 and line.startswith(BYTE_ORDER_MARK) else 0
        if line.strip():
            yield number, offset + mark, line[mark:]
        offset += len(line)


def parse_object(line: str | bytes, place: str, expected: str) -> dict[str, Any]:
    """Return the object in a line of JSON; anything else is a `DataError` with the place and what was `expected`."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}; correct or remove the line") from None
    if not isinstance(value, dict):
        raise DataError(f"{place}: {kind_of(value)}, expected {expected}")
    return value


def kind_of(value: object) -> str:
    """Return what a parsed JSON value is, in words."""
    return JSON_KINDS.get(type(value), "a number")
