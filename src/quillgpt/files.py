"""All file output: atomic writes, fsync, rename, locks. No other module opens a file for writing (a test checks it).

A file or directory is written under a temporary name next to the target, synced, and then renamed, so what exists
under its own name is complete. Writes are `write` calls: a memory-mapped write on a full disk kills the process with
SIGBUS. A failure raises a `DiskError` with the path and the free space, and removes the temporary file.
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
except ImportError:  # Windows has no flock; the lock file only names the process
    fcntl = None  # type: ignore[assignment]

TEMPORARY_PREFIX = ".tmp-"
CHUNK_BYTES = 1 << 22


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise an `OSError` of the block as a `DiskError` that names the path, the reason and the remedy."""
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
    """A file that is written once from front to back; `size` is the number of bytes so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes | memoryview) -> None:
        """Append the content, in chunks, so that hashing and writing share the CPU's cache."""
        view = memoryview(content).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            chunk = view[start : start + CHUNK_BYTES]
            self._file.write(chunk)
            self._hash.update(chunk)
        self.size += len(view)

    @property
    def sha256(self) -> str:
        """Hex digest of the content so far."""
        return self._hash.hexdigest()


@contextlib.contextmanager
def written_file(path: Path) -> Iterator[HashedFile]:
    """Open a new file for writing; after the block it is synced, after an error in the block it is deleted."""
    with disk_errors(path), _synced_file(path) as file:
        yield file


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[HashedFile]:
    """Open a temporary file for writing; it replaces `path` by one rename when the block ends without an error."""
    with disk_errors(path):
        make_directory(path.parent)
        temporary = _temporary(path)
        with _synced_file(temporary) as file:
            yield file
        try:
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write the text (UTF-8) to a file atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write the value as indented JSON to a file atomically; NaN and infinity are a `ValueError`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_directory(path: Path, *, replaces: bool = False) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to `path` when the block ends without an error.

    `path` must not exist, or be empty, unless `replaces`: then the old directory stays until the new one is complete.
    Files in the directory should be written with `written_file`, which syncs them.
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
    """Replace the directory `path` by `new` and delete the old one; after a failed rename, the old one is restored.

    Between the two renames the old directory has a name that no clean-up deletes, so that a user can restore it.
    """
    old = path.with_name(f"{path.name}.replaced-{uuid.uuid4().hex[:8]}")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    _sync_directory(path.parent)
    remove_directory(old)


def make_directory(path: Path) -> None:
    """Create a directory and its parents, and sync them; a file of that name or a read-only disk is a `DiskError`."""
    with disk_errors(path):
        missing = [folder for folder in [path, *path.parents] if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            _sync_directory(folder.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line to a log."""
    with disk_errors(path), path.open("ab") as file:
        file.write(line.encode() + b"\n")


def remove_file(path: Path) -> None:
    """Delete a file if it exists."""
    with disk_errors(path):
        path.unlink(missing_ok=True)


def remove_directory(path: Path) -> None:
    """Delete a directory; it is first renamed, so that `remove_leftovers` finishes an interrupted deletion."""
    with disk_errors(path):
        leftover = _temporary(path)
        os.replace(path, leftover)
        shutil.rmtree(leftover)


def remove_leftovers(directory: Path, *, of: str = "") -> None:
    """Delete temporary files and directories of interrupted writes in a directory; `of`: only those of this name."""
    with disk_errors(directory):
        for leftover in directory.glob(TEMPORARY_PREFIX + (f"{glob.escape(of)}-????????" if of else "*")):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock during the block; if another process holds it, a `LockedError` names that process.

    The kernel releases the lock when the process ends, so there are no stale locks.
    """
    path = directory / ".lock"
    with disk_errors(path):
        file = path.open("a+b", buffering=0)  # a buffer that cannot be written would be tried again on closing
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
def _synced_file(path: Path) -> Iterator[HashedFile]:
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
