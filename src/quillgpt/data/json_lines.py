"""Lines of JSON: one object a line, and every error with the file and the number of the line."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from quillgpt.errors import DataError

LINE_BYTES = 1 << 26  # a parsed line takes up to 9 times its size in memory
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def numbered_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, int, bytes]]:
    """Number, byte offset and content of each line that is not empty; `name` is what errors call the file."""
    number = offset = 0
    while line := file.readline(LINE_BYTES + 1):
        number += 1
        if len(line) > LINE_BYTES:
            raise DataError(f"{name}:{number}: a line of more than {LINE_BYTES:,} bytes; split it, or use text")
        mark = len(BYTE_ORDER_MARK) if offset == 0 and line.startswith(BYTE_ORDER_MARK) else 0
        if line.strip():
            yield number, offset + mark, line[mark:]
        offset += len(line)


def parse_object(line: str | bytes, where: str, expected: str) -> dict[str, Any]:
    """The object of a line; anything else is a `DataError` that says where and what was `expected`."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}; mend or remove the line") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: {kind_of(value)}, expected {expected}")
    return value


def kind_of(value: object) -> str:
    """What a parsed value is, in words."""
    kinds: dict[type, str] = {
        list: "a list",
        dict: "an object",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return kinds.get(type(value), "a number")
