"""Read the small files that describe things: manifests, states, settings, results. One strict reader for all of them.

A missing file is a `FileNotFoundError`. Everything else that keeps a file from being used (a read error, a pipe, too
many bytes, other text than UTF-8, broken JSON, a wrong type, an unknown field) is the caller's kind of error, so that
"cannot be read" is never taken for "is not there". Reading is bounded in time and memory, whatever the file contains.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from quillgpt.errors import QuillError, advice, shown

T = TypeVar("T")

MAX_BYTES = 1 << 26  # the largest tokenizers have half of it
MAX_TOML_BYTES = 1 << 18
MAX_KEY_WORDS = 16  # tomllib takes quadratic memory for a.a.a...
SEAL = "sha256"
READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
FILE_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
FILE_KINDS |= dict.fromkeys((stat.S_IFCHR, stat.S_IFBLK), "a device")
LONG_KEY = re.compile(rf"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){{{MAX_KEY_WORDS}}}""")


def open_regular(path: Path, error: type[QuillError]) -> io.BufferedReader:
    """Open a regular file for reading, without waiting for a pipe; a missing one is a `FileNotFoundError`."""
    try:
        descriptor = os.open(path, READ_FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as failure:
        raise unreadable(path, failure, error) from None
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            raise error(f"{path}: {FILE_KINDS.get(kind, 'a special file')}, expected a regular file")
        return os.fdopen(descriptor, "rb")
    except OSError as failure:
        os.close(descriptor)
        raise unreadable(path, failure, error) from None
    except QuillError:
        os.close(descriptor)
        raise


def unreadable(path: Path, failure: OSError, error: type[QuillError]) -> QuillError:
    """Return the error for a file that exists and that the system does not let us read."""
    return error(f"{path}: cannot be read: {failure.strerror or failure}{advice(failure)}")


def read_bytes(path: Path, *, error: type[QuillError], limit: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file of at most `limit` bytes."""
    with open_regular(path, error) as file:
        try:
            content = file.read(limit + 1)
        except OSError as failure:
            raise unreadable(path, failure, error) from None
    if len(content) > limit:
        raise error(f"{path}: more than {limit:,} bytes, too large for a file of this kind")
    return content


def read_text(path: Path, *, error: type[QuillError], remedy: str = "", limit: int = MAX_BYTES) -> str:
    """Return the text of a UTF-8 file."""
    try:
        return read_bytes(path, error=error, limit=limit).decode("utf-8")
    except UnicodeDecodeError as failure:
        raise _damaged(path, f"not UTF-8 at byte {failure.start:,}", error, remedy) from None


def read_json(path: Path, *, error: type[QuillError], remedy: str = "", limit: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file; a key given twice, NaN and infinity are errors too."""
    return parse_json(read_text(path, error=error, remedy=remedy, limit=limit), path, error=error, remedy=remedy)


def parse_json(text: str, path: Path, *, error: type[QuillError], remedy: str = "") -> dict[str, Any]:
    """Return the JSON object in a text; `path` is where the text is from."""
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as failure:
        raise _damaged(path, f"not JSON: {failure}", error, remedy) from None
    if not isinstance(content, dict):
        raise _damaged(path, f"{shown(content)}, expected a JSON object", error, remedy)
    return content


def read_toml(path: Path, *, error: type[QuillError]) -> dict[str, Any]:
    """Return the tables of a TOML file."""
    text = read_text(path, error=error, limit=MAX_TOML_BYTES)
    if LONG_KEY.search(text):
        raise error(f"{path}: a key of more than {MAX_KEY_WORDS} words with dots between them")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as failure:
        raise error(f"{path}: not a TOML file: {failure}") from None


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with its own SHA-256 as the last entry; NaN and infinity are a `ValueError`."""
    return {**content, SEAL: _digest(content)}


def check_seal(content: dict[str, Any], path: Path, *, error: type[QuillError], remedy: str = "") -> dict[str, Any]:
    """Return the content of a sealed file without its SHA-256; one that does not match is an error."""
    rest = {name: value for name, value in content.items() if name != SEAL}
    if content.get(SEAL) != _digest(rest):
        raise _damaged(path, "its content differs from the SHA-256 in it", error, remedy)
    return rest


def convert(
    content: Any, kind: type[T], path: Path, *, error: type[QuillError], remedy: str = "", complete: bool = False
) -> T:
    """Return parsed JSON as a dataclass (or a list or mapping); a wrong type or an unknown field is an error.

    complete: fields with a default must be there, too.
    """
    try:
        value = msgspec.convert(content, kind)
    except (msgspec.ValidationError, QuillError, TypeError) as failure:  # QuillError: of the class's own checks
        raise _damaged(path, str(failure), error, remedy) from None
    missing = {field.name for field in dataclasses.fields(kind)} - content.keys() if complete else set()  # pyrefly: ignore
    if missing:
        raise _damaged(path, f"no field {shown(min(missing))}", error, remedy)
    if unknown := _unknown_field(content, value):
        raise _damaged(path, f"unknown field {shown(unknown)}", error, remedy)
    return value


def _unknown_field(content: Any, value: Any) -> str:
    """The name of a field, at any depth, that the content has and its dataclass has not; "" if there is none."""
    if isinstance(value, list | tuple):
        pairs = list(zip(content, value, strict=True))
    elif isinstance(value, dict):
        pairs = [(content[name], entry) for name, entry in value.items()]
    elif dataclasses.is_dataclass(value):
        names = {field.name for field in dataclasses.fields(value)}
        if unknown := content.keys() - names:
            return min(unknown)
        pairs = [(content[name], getattr(value, name)) for name in names & content.keys()]
    else:
        return ""
    return next((unknown for pair in pairs if (unknown := _unknown_field(*pair))), "")


def _damaged(path: Path, what: str, error: type[QuillError], remedy: str) -> QuillError:
    return error(f"{path}: damaged: {what}" + (f"; {remedy}" if remedy else ""))


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(name for name in names if names.count(name) > 1))} is given twice")
    return content


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value
