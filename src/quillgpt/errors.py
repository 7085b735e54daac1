"""What can go wrong in a way the user can mend: each error is one clear line and one exit code."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

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


class QuillError(Exception):
    """Base of the errors that are shown without a traceback; the message says what, where, got, expected, remedy."""

    exit_code = 1


class ConfigError(QuillError):
    """A setting, flag, recipe key or value that does not exist or does not fit the others."""

    exit_code = 2


class DataError(QuillError):
    """Text, shards or a tokenizer that cannot be used as they are."""

    exit_code = 65


class CheckpointError(QuillError):
    """A run or checkpoint that is missing, damaged, or of another model."""

    exit_code = 65


class ExportError(QuillError):
    """An export that, read back, is not the model it was made from; nothing of it was left behind."""

    exit_code = 65


class NonFiniteError(QuillError):
    """Loss or gradients stayed NaN or infinite; the last good checkpoint is intact."""

    exit_code = 70


class OutOfMemory(QuillError):
    """The machine's memory does not hold the model and its batch."""

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
    """What was computed in two ways differs by more than the tolerance, or cannot be compared."""

    exit_code = 76


class Interrupted(QuillError):
    """Ctrl-C ended the run at a step boundary, after saving."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean NAME?)` for the known name closest to a misspelt one, or nothing when none is close."""
    if len(name) > 100:  # comparing takes time, and it is no slip of the finger
        return ""
    candidates = {entry.replace("-", "_").lower(): entry for entry in known}
    matches = difflib.get_close_matches(name.replace("-", "_").lower(), candidates, n=1, cutoff=0.6)
    return f" (did you mean {candidates[matches[0]]}?)" if matches else ""


def pick(menu: Mapping[str, T], name: str, setting: str) -> T:
    """Return the menu's entry of that name; a `ConfigError` names the setting, the nearest entry and all entries."""
    if name in menu:
        return menu[name]
    raise ConfigError(
        f"{setting} = {shown(name)} does not exist{nearest(name, menu)}; choose one of: {', '.join(menu)}"
    )


TYPE_NAMES: dict[type, str] = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def check_type(setting: str, value: object, wanted: type) -> None:
    """Refuse a value of another type (whole numbers are numbers), NaN, infinity, more than 64 bits, unusable text."""
    if type(value) is not wanted and not (wanted is float and type(value) is int):
        raise ConfigError(f"{setting} = {shown(value)} is not {TYPE_NAMES[wanted]}")
    if isinstance(value, str):
        require(setting, value, not re.search(r"[\0\ud800-\udfff]", value), "text in UTF-8, without NUL")
    if isinstance(value, int):
        require(setting, value, -(2**63) <= value < 2**63, "at most 64 bits")
    if isinstance(value, float):
        require(setting, value, math.isfinite(value), "a finite number")


def require(setting: str, value: object, holds: bool, expected: str) -> None:
    """Raise a `ConfigError` that names setting, value and what is expected, unless it holds."""
    if not holds:
        raise ConfigError(f"{setting} = {shown(value)} is not possible: expected {expected}")


def shown(value: object) -> str:
    """A value on part of a line, whatever its size."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
