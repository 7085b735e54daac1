"""All file output: atomic writes, fsync, rename, locks. No other module opens a file for writing (a test checks it).

What is committed is complete: content goes to a temporary name beside the target, is flushed to the disk, and appears
under its own name by one rename. Writes are plain `write` calls, because a memory-mapped write on a full disk kills
the process with SIGBUS. A failure raises `DiskError` with the path and the space left, and removes what was begun.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from quillgpt.errors import DiskError, LockedError

try:
    import fcntl
except ImportError:  # Windows has no flock; the lock file then only records who runs
    fcntl = None  # type: ignore[assignment]

TEMPORARY_PREFIX = ".tmp-"
CHUNK_BYTES = 1 << 22


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `DiskError` that names the path, the reason and the remedy."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path}: cannot write: {error.strerror or error}; {_remedy(error, path)}") from error


def _remedy(error: OSError, path: Path) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return "choose another --out"
    existing = next((parent for parent in [path, *path.absolute().parents] if parent.is_dir()), Path("/"))
    try:
        return f"{shutil.disk_usage(existing).free / 1e6:,.0f} MB free there; free some or choose another --out"
    except OSError:
        return "free some space there or choose another --out"


class HashedFile:
    """A file being written once, front to back: `write(bytes)`, with `sha256` (hex) and `size` (bytes) so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes | memoryview) -> None:
        """Append the content; large content goes out in chunks, so that hashing and writing share the cache."""
        view = memoryview(content).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            chunk = view[start : start + CHUNK_BYTES]
            self._file.write(chunk)
            self._hash.update(chunk)
        self.size += len(view)

    @property
    def sha256(self) -> str:
        """Hex digest of everything written so far."""
        return self._hash.hexdigest()


@contextlib.contextmanager
def written_file(path: Path) -> Iterator[HashedFile]:
    """Open a new file for writing; when the block ends well it is on the disk, otherwise it is gone."""
    with disk_errors(path), _synced_or_gone(path) as file:
        yield file


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[HashedFile]:
    """Write a file that replaces `path` by one rename when the block ends well; until then `path` stays as it was."""
    with disk_errors(path):
        make_directory(path.parent)
        temporary = _temporary(path)
        with _synced_or_gone(temporary) as file:
            yield file
        try:
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content with the text (UTF-8), atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace a file's content with the value as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_directory(path: Path, *, replaces: bool = False) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` by one rename when the block ends well.

    `path` must not exist, or be empty. With `replaces` it may: it stays as it was until the new one is complete, and
    then steps aside. The files inside are expected to be written by `written_file`, which syncs them.
    """
    with disk_errors(path):
        make_directory(path.parent)
        temporary = _temporary(path)
        temporary.mkdir()
        try:
            yield temporary
            _sync_directory(temporary)
            if replaces and path.exists():
                _exchange(temporary, path)
            else:
                os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_directory(path.parent)


def _exchange(new: Path, path: Path) -> None:
    """Put a directory in another's place and delete that one; where the first fails, the old one is back.

    Between the two renames the old one is beside its place, under a name that a user finds and nothing deletes.
    """
    aside = path.with_name(f"{path.name}.replaced-{uuid.uuid4().hex[:8]}")
    os.replace(path, aside)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(aside, path)
        raise
    _sync_directory(path.parent)
    remove_directory(aside)


def make_directory(path: Path) -> None:
    """Create a directory and its parents, lastingly; a file in the way or a read-only place is a `DiskError`."""
    with disk_errors(path):
        missing = [folder for folder in [path, *path.parents] if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            _sync_directory(folder.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line to a log; the caller decides whether a `DiskError` matters to it."""
    with disk_errors(path), path.open("ab") as file:
        file.write(line.encode() + b"\n")


def remove_file(path: Path) -> None:
    """Delete a file where it exists."""
    with disk_errors(path):
        path.unlink(missing_ok=True)


def remove_directory(path: Path) -> None:
    """Delete a directory; by one rename it becomes a leftover, so that an interrupted deletion is finished later."""
    with disk_errors(path):
        leftover = _temporary(path)
        os.replace(path, leftover)
        shutil.rmtree(leftover)


def remove_leftovers(directory: Path, *, of: str = "") -> None:
    """Delete what an interrupted write left in a directory (names with the temporary prefix), of one name or of all."""
    with disk_errors(directory):
        for leftover in directory.glob(TEMPORARY_PREFIX + (f"{glob.escape(of)}-????????" if of else "*")):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock for the length of the block; a second holder gets a `LockedError` naming the first.

    The kernel releases the lock when the process dies, so that no stale lock survives a kill.
    """
    path = directory / ".lock"
    with disk_errors(path):
        file = path.open("a+b", buffering=0)  # a buffer that a full disk refuses would be tried again on closing
    with file:
        with disk_errors(path):
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().decode(errors="replace").strip() or "another process"
                raise LockedError(f"{directory} is in use by {holder}; wait for it or choose another --out") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def _synced_or_gone(path: Path) -> Iterator[HashedFile]:
    file = path.open("wb")
    try:
        with file:
            yield HashedFile(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a directory; its renames are journaled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do not sync a directory
            raise
    finally:
        os.close(descriptor)
