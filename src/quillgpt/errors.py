"""Errors that the user can fix: each has a one-line message (what, where, got, expected, remedy) and an exit code."""

import difflib
import errno
import importlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

EXIT_CODES = {
    0: "done",
    1: "a bug in quill (please report it)",
    2: "usage: unknown command, flag, recipe key or value",
    65: "bad data or checkpoint",
    70: "non-finite loss",
    71: "out of memory",
    73: "run directory locked by another run",
    74: "disk full or not writable",
    75: "stopped by a signal or a time limit, and resumable",
    76: "a check did not pass",
    130: "interrupted (Ctrl-C); saved where there was something to save",
}
TYPE_NAMES: dict[type, str] = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
MAX_SHOWN, MAX_NAME = 80, 100  # characters; a longer name is not a typo, and comparing it takes time


class QuillError(Exception):
    """Base of the errors that are shown without a traceback."""

    exit_code = 1


class ConfigError(QuillError):
    """A setting, flag, recipe key or value that is unknown, invalid, or in conflict with another."""

    exit_code = 2


class DataError(QuillError):
    """Text, shards or a tokenizer that cannot be used."""

    exit_code = 65


class CheckpointError(QuillError):
    """A run or checkpoint that is missing, damaged, or of another model."""

    exit_code = 65


class ExportError(QuillError):
    """An export that differs from its model when it is read back; it was deleted."""

    exit_code = 65


class NonFiniteError(QuillError):
    """Loss or gradients stayed NaN or infinite; the last good checkpoint is intact."""

    exit_code = 70


class OutOfMemory(QuillError):
    """The model and its batch do not fit into memory."""

    exit_code = 71


class LockedError(QuillError):
    """Another process is writing to the run directory."""

    exit_code = 73


class DiskError(QuillError):
    """A file could not be written: disk full, read-only, or no permission."""

    exit_code = 74


class Stopped(QuillError):
    """A signal or a time limit ended the run at a step boundary; running the same command again continues it."""

    exit_code = 75


class CheckError(QuillError):
    """A check did not pass, or two computations of the same thing differ by more than the tolerance."""

    exit_code = 76


class Interrupted(QuillError):
    """Ctrl-C ended the run at a step boundary, after saving."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean NAME?)` with the known name closest to a misspelt one, or "" if none is close."""
    if len(name) > MAX_NAME:
        return ""
    candidates = {entry.replace("-", "_").lower(): entry for entry in known}
    matches = difflib.get_close_matches(name.replace("-", "_").lower(), candidates, n=1, cutoff=0.6)
    return f" (did you mean {candidates[matches[0]]}?)" if matches else ""


def pick(menu: Mapping[str, T], name: str, setting: str) -> T:
    """Return the menu's entry of that name; a `ConfigError` names the setting, the nearest entry and all entries."""
    if name in menu:
        return menu[name]
    raise ConfigError(f"invalid {setting}: {shown(name)}{nearest(name, menu)}; choose one of: {', '.join(menu)}")


def require(setting: str, value: object, holds: bool, expected: str) -> None:
    """Raise a `ConfigError` that names the setting, its value and what is expected, unless the condition holds."""
    if not holds:
        raise ConfigError(f"invalid {setting}: {shown(value)} (must be {expected})")


def check_type(setting: str, value: object, expected: type) -> None:
    """Refuse a value of another type (an integer is a number), NaN, infinity, > 64 bits, NUL, lone surrogates."""
    is_type = type(value) is expected or (expected is float and type(value) is int)
    require(setting, value, is_type, TYPE_NAMES[expected])
    if isinstance(value, str):
        require(setting, value, not re.search(r"[\0\ud800-\udfff]", value), "text in UTF-8, without NUL")
    if isinstance(value, int):
        require(setting, value, -(2**63) <= value < 2**63, "at most 64 bits")
    if isinstance(value, float):
        require(setting, value, math.isfinite(value), "a finite number")


def shown(value: object) -> str:
    """Return the value as part of a line, shortened if it is long."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def import_optional(module: str, *, extra: str) -> Any:
    """Import a module of an optional package; a `ConfigError` names the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ConfigError(f"{package} is not installed: pip install 'quillgpt[{extra}]'") from None


ADVICE = {
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose a place that can be written",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "free some memory, then run the command again",
    errno.ELOOP: "correct its symbolic links",
    errno.EIO: "check the disk, then run the command again",
    errno.ESTALE: "mount it again, then run the command again",
}


def advice(error: OSError, alternative: str = "") -> str:
    """Return `; ` and what a user can do about an error of the system; "" where nothing general helps."""
    remedies = [remedy for remedy in (ADVICE.get(error.errno or 0), alternative) if remedy]
    return "; " + ", or ".join(remedies) if remedies else ""
