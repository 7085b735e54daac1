"""Writing a GGUF file one tensor after the other, through `files.py`.

The library's own writer opens the file itself and has no empty array, which a tokenizer without merges needs.
The format (version 3, little-endian): magic, counts, key-value pairs, a table of the tensors, and the tensors, each
beginning at a multiple of 32 bytes [Gerganov 2023].
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quillgpt import files

ALIGNMENT = 32
VERSION = 3
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
"""the format's numbers for types of values"""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor to be written: its shape (rows first), its type's number in the format, its size, and how to make it."""

    shape: tuple[int, ...]
    kind: int
    bytes: int
    content: Callable[[], memoryview]


Value = bool | int | float | str | Sequence[str] | Sequence[int]


def write_gguf(path: Path, values: Mapping[str, Value], tensors: Mapping[str, StoredTensor]) -> None:
    """Write the key-value pairs and the tensors, each made when its turn comes; whole numbers are unsigned."""
    head = b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(values))
    head += b"".join(_string(key) + _value(value) for key, value in values.items())
    offset = 0
    for name, tensor in tensors.items():
        head += _string(name) + struct.pack("<I", len(tensor.shape))
        head += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))  # the format counts columns first
        head += struct.pack("<IQ", tensor.kind, offset)
        offset += tensor.bytes + _padding(tensor.bytes)
    with files.written_file(path) as file:
        file.write(head + bytes(_padding(len(head))))
        for tensor in tensors.values():
            content = tensor.content()
            assert len(content) == tensor.bytes
            file.write(content)
            file.write(bytes(_padding(tensor.bytes)))


def _padding(size: int) -> int:
    return -size % ALIGNMENT


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Value) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case int():
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + _string(value)
    numbers = [item for item in value if isinstance(item, int)]
    kind = INT32 if numbers else STRING
    head = struct.pack("<IIQ", ARRAY, kind, len(value))
    if numbers:
        return head + struct.pack(f"<{len(numbers)}i", *numbers)
    return head + b"".join(_string(str(item)) for item in value)
