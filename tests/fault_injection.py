"""A disk that fails, or a process that is killed, at the n-th file operation, and a log of the operations.

All file output of the package goes through `files.py`, and all of its operations through the functions patched here:
`Path.open`, the raw `write` below Python's buffer, `os.fsync`, `os.replace`, `os.mkdir`, `os.unlink` and `os.rmdir`.
"""

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KILLED = 9


class Raw(io.FileIO):
    """A file whose writes are operations of the disk; a failing write writes half of its bytes."""

    def __init__(self, disk: "Disk", path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.disk, self.path = disk, path

    def write(self, content: Any) -> int:
        half = memoryview(content).cast("B")[: len(content) // 2]
        self.disk.operation("write", self.path, half_done=lambda: io.FileIO.write(self, half))
        if self.disk.writes_short and len(half):
            return super().write(half)
        return super().write(content)


class Disk:
    """Counts operations and logs them; operations `at` to `at + lasting - 1` fail by calling `fail`."""

    def __init__(
        self, patch: pytest.MonkeyPatch, *, at: int = 0, lasting: int = 1, fail: Callable[[], None] | None = None
    ) -> None:
        self.log: list[tuple[str, ...]] = []
        self.count, self.at, self.lasting, self.fail = 0, at, lasting, fail
        self.writes_short, self.failed_at = False, ""
        self._open, self._directory_open = Path.open, os.open
        self._descriptors: dict[int, Path] = {}
        patch.setattr(Path, "open", lambda path, mode="r", buffering=-1, **rest: self.open(path, mode, buffering, rest))
        patch.setattr(os, "open", self.open_directory)
        patch.setattr(os, "fsync", lambda descriptor: self.operation("fsync", self._descriptors[descriptor]))
        for name in ("replace", "mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, self.counted(name, getattr(os, name)))

    def operation(self, name: str, *paths: object, half_done: Callable[[], object] = lambda: None) -> None:
        """Log an operation that is about to be done, or fail instead."""
        self.count += 1
        if self.fail is not None and self.at <= self.count < self.at + self.lasting:
            half_done()
            self.failed_at = str(paths[0])
            self.fail()
        self.log.append((name, *map(str, paths)))

    def counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.operation(name, *arguments[: 2 if name == "replace" else 1])
            return real(*arguments, **options)

        return call

    def open(self, path: Path, mode: str, buffering: int, rest: dict[str, Any]) -> Any:
        if not set(mode) & set("wax+"):
            return self._open(path, mode, buffering, **rest)
        self.operation("open", path)
        raw = Raw(self, path, mode.replace("b", ""))
        self._descriptors[raw.fileno()] = path
        if buffering == 0:
            return raw
        return io.BufferedWriter(raw)

    def open_directory(self, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        descriptor = self._directory_open(path, flags, *rest, **options)
        if isinstance(path, Path):
            self._descriptors[descriptor] = path
        return descriptor


class FailingReads:
    """Counts what reads below a folder (opening, listing, status); the one of number `at` fails with this errno."""

    CALLS = ((os, "open"), (os, "listdir"), (os, "scandir"), (os, "stat"), (io, "open"), (builtins, "open"))

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, *, at: int, number: int) -> None:
        self.folder, self.at, self.number, self.count, self.failed = str(folder), at, number, 0, ""
        for module, name in self.CALLS:
            patch.setattr(module, name, self.failing(name, getattr(module, name)))

    def failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *arguments: Any, **options: Any) -> Any:
            mode = arguments[0] if arguments else options.get("mode", "r")
            is_read = name != "open" or isinstance(mode, int) or set(mode) <= set("rbt")
            if is_read and isinstance(target, str | os.PathLike) and str(target).startswith(self.folder):
                self.count += 1
                if self.count == self.at:
                    self.failed = f"{name} {target}"
                    raise OSError(self.number, os.strerror(self.number), str(target))
            return real(target, *arguments, **options)

        return call


def error(number: int) -> Callable[[], None]:
    """Return a function that raises the `OSError` of this number."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


FAILURES: dict[str, dict[str, Any]] = {
    "full disk": {"fail": error(errno.ENOSPC)},
    "input/output error": {"fail": error(errno.EIO)},
    "read-only": {"fail": error(errno.EROFS), "lasting": 10**9},
    "disk gone": {"fail": error(errno.EIO), "lasting": 10**9},
}
LASTING = ("read-only", "disk gone")
"""failures after which nothing can be cleaned up either, until the next start"""


def failing(patch: pytest.MonkeyPatch, failure: str, at: int) -> Disk:
    """Return a disk with this failure at this operation."""
    return Disk(patch, at=at, **FAILURES[failure])


def exit_code_of_fork(act: Callable[[], object], at: int) -> int:
    """Run `act` in a fork that is killed at this operation; return KILLED, or 0 if it was done before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Disk(pytest.MonkeyPatch(), at=at, fail=lambda: os._exit(KILLED))
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
