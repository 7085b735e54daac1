"""Finding a source's files and reading them as UTF-8, with every character as it stands, line ends included."""

import codecs
import errno
import glob
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from quillgpt.data.document import Tally
from quillgpt.errors import ConfigError, DataError

BLOCK_BYTES = 1 << 20
REPLACEMENT = "\ufffd"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def find_files(path: str, *, source: str, suffix: str = "", left_out: Collection[str] = ()) -> list[Path]:
    """The files that `--path` names (a file, a folder, or a glob) in a fixed order; each is a regular file.

    A folder gives the files below it that end in `suffix`, without hidden ones and without the folders `left_out`;
    links to folders are not followed.
    """
    if not path:
        raise ConfigError(f"the source {source} needs to know its files; give --path FILE, FOLDER or 'GLOB'")
    place = Path(path)
    if place.is_dir():
        found = [file for file in _below(place, left_out) if file.name.endswith(suffix)]
        wanted = f"*{suffix} files" if suffix else "files"
        if not found:
            raise DataError(f"{path}: the folder holds no {wanted}; give --path FILE, FOLDER or 'GLOB'")
    elif glob.has_magic(path) and not os.path.lexists(path):
        found = [Path(name) for name in glob.glob(path, recursive=True) if not Path(name).is_dir()]
        if not found:
            raise DataError(f"{path}: no file matches this glob; give --path FILE, FOLDER or 'GLOB'")
    else:
        found = [place]
    for file in found:
        require_regular(file)
    return sorted(found, key=lambda file: file.as_posix())


def require_regular(path: Path) -> None:
    """Refuse what would hang or never end when read (a pipe, a device), and what is missing or loops."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        reason = "a loop of symbolic links" if error.errno == errno.ELOOP else (error.strerror or str(error)).lower()
        raise DataError(f"{path}: {reason}; expected a regular file") from None
    if kind != stat.S_IFREG:
        raise DataError(f"{path}: {KINDS.get(kind, 'a special file')}, expected a regular file")


def total_bytes(files: Iterable[Path]) -> int:
    """Size of all files together."""
    return sum(file.stat().st_size for file in files)


def read_blocks(path: Path) -> Iterator[bytes]:
    """A file's bytes, a block at a time."""
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that the system does not let us read."""
    return DataError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}; check its permissions")


def decoded(blocks: Iterable[bytes], *, path: Path, errors: str, tally: Tally) -> Iterator[str]:
    """The text of UTF-8 bytes; other bytes are an error that names the place, or are replaced by U+FFFD and counted."""
    pending, offset = b"", 0
    for block in blocks:
        content = pending + block
        text, used = _decode(content, path=path, offset=offset, errors=errors, tally=tally, final=False)
        pending, offset = content[used:], offset + used
        yield text
    if pending:
        yield _decode(pending, path=path, offset=offset, errors=errors, tally=tally, final=True)[0]


def decode_line(line: bytes, *, path: Path, offset: int, errors: str, tally: Tally) -> str:
    """The text of one line that begins at byte `offset` of its file."""
    return _decode(line, path=path, offset=offset, errors=errors, tally=tally, final=True)[0]


def without_surrogates(text: str, *, where: str, errors: str, tally: Tally) -> str:
    r"""The text, checked for halves of characters, which JSON can write (\\ud83d) and UTF-8 cannot."""
    if text.isascii():
        return text
    found = LONE_SURROGATE.search(text)
    if found is None:
        return text
    if errors == "strict":
        half = f"U+{ord(found.group()):04X} at character {found.start():,}"
        raise DataError(f"{where}: the text holds half a character ({half}); mend it or add --errors replace")
    text, count = LONE_SURROGATE.subn(REPLACEMENT, text)
    tally.replacements += count
    return text


def _decode(content: bytes, *, path: Path, offset: int, errors: str, tally: Tally, final: bool) -> tuple[str, int]:
    try:
        return codecs.utf_8_decode(content, "strict", final)
    except UnicodeDecodeError as error:
        if errors == "strict":
            place = f"byte {offset + error.start:,} (0x{content[error.start]:02x})"
            raise DataError(f"{path}: not UTF-8 at {place}; convert the file or add --errors replace") from None
    text, used = codecs.utf_8_decode(content, "replace", final)
    genuine = codecs.utf_8_decode(content[:used], "ignore", True)[0].count(REPLACEMENT)
    tally.replacements += text.count(REPLACEMENT) - genuine
    return text, used


def _below(folder: Path, left_out: Collection[str]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or folder), error)

    for directory, folders, names in os.walk(folder, onerror=refuse, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        yield from [Path(directory) / name for name in names if not name.startswith(".")]
