"""All file output: atomic writes, fsync, rename, locks. No other module opens a file for writing (a test checks it).

A file or directory is written under a temporary name next to the target, synced, and then renamed, so what exists
under its own name is complete. Writes are `write` calls: a memory-mapped write on a full disk kills the process with
SIGBUS. A failure raises a `DiskError` with the path and the free space, and removes the temporary file.
"""

import contextlib
import errno
import functools
import glob
import hashlib
import itertools
import json
import logging
import os
import shutil
import socket
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from quillgpt.errors import DiskError, LockedError, advice

try:
    import fcntl
except ImportError:  # Windows has no flock; the lock file only names the process
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".tmp-"
CHUNK_BYTES = 1 << 22
NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise an `OSError` of the block as a `DiskError` that names the path, the reason and the remedy."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path}: cannot write: {error.strerror or error}{_remedy(error, path)}") from error


def _remedy(error: OSError, path: Path) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return advice(error, "choose another --out")
    existing = next((parent for parent in [path, *path.absolute().parents] if parent.is_dir()), Path("/"))
    try:
        return f"; {shutil.disk_usage(existing).free / 1e6:,.0f} MB free there; free some or choose another --out"
    except OSError:
        return "; free some space there or choose another --out"


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
    """Append one line to a log, after the end of the line before even if that was cut short."""
    with disk_errors(path):
        _refuse_foreign(path)
        with path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            content = (b"" if file.read(1) in (b"", b"\n") else b"\n") + line.encode() + b"\n"
            while content:
                content = content[file.write(content) :]


def _refuse_foreign(path: Path) -> None:
    """Refuse to write into a link, a pipe or a device, which may belong to something else; a missing file is fine."""
    with contextlib.suppress(FileNotFoundError):
        kind = stat.S_IFMT(path.lstat().st_mode)
        if kind != stat.S_IFREG:
            what = "a symbolic link" if kind == stat.S_IFLNK else "not a regular file"
            raise DiskError(f"{path}: {what}; nothing is written through it: remove it, or choose another --out")


def set_aside(path: Path) -> Path:
    """Rename a file to NAME.1, NAME.2, ..., the first that is free, and return it."""
    with disk_errors(path):
        names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
        free = next(name for name in names if not os.path.lexists(name))
        os.replace(path, free)
        _sync_directory(path.parent)
    return free


def remove_file(path: Path) -> None:
    """Delete a file if it exists."""
    with disk_errors(path):
        path.unlink(missing_ok=True)


def remove_directory(path: Path) -> None:
    """Delete a directory; it is first renamed, so that `remove_leftovers` finishes an interrupted deletion.

    Of a link to a directory only the link is deleted.
    """
    with disk_errors(path):
        if path.is_symlink():
            path.unlink()
            return
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
def locked(directory: Path, *, waits: bool = False) -> Iterator[None]:
    """Hold the directory's lock during the block; if another process holds it, a `LockedError` names that process.

    waits: wait for the other process instead. The kernel releases the lock when the process ends, so there are no stale
    locks. On a file system without locks the block runs unlocked, with a warning.
    """
    path = directory / ".lock"
    with disk_errors(path):
        _refuse_foreign(path)
        file = path.open("a+b", buffering=0)  # a buffer that cannot be written would be tried again on closing
    with file:
        with disk_errors(path):
            if not _lock(file, waits=False):
                file.seek(0)
                holder = file.read().decode(errors="replace").strip() or "another process"
                if not waits:
                    raise LockedError(f"{directory} is in use by {holder}; wait for it or choose another --out")
                logger.info("waiting for %s, which is at work in %s", holder, directory)
                _lock(file, waits=True)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def _lock(file: BinaryIO, *, waits: bool) -> bool:
    """Lock the file until it is closed; False if another process holds the lock."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, *NOT_SUPPORTED):
            raise
        name = Path(file.name).parent
        logger.warning("%s: this file system has no locks; do not start two commands on this directory", name)
    return True


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content; a read error is an `OSError`."""
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
            _sync(file.fileno(), path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a directory; its renames are journaled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor, path, warns=False)  # several network file systems do not sync a directory
    finally:
        os.close(descriptor)


def _sync(descriptor: int, path: Path, *, warns: bool = True) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        if warns:
            _warn_once(f"{path.parent}: this file system cannot sync files; a power failure may lose the latest ones")


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)
