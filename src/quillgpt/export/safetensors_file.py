"""Writing a safetensors file one tensor after the other: the library's `save` holds the whole file in memory twice.

The format: the length of the header in 8 bytes, the header (JSON: dtype, shape and place of each tensor), the tensors.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from quillgpt import files

ALIGNMENT = 8  # the header is padded with spaces, so that the tensors begin at a multiple of it


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors as float32, in their order; a view (transposed, cut) is copied when its turn comes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with files.written_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(float32_bytes(tensor))


def float32_bytes(tensor: Tensor) -> memoryview:
    """A tensor's numbers as they lie in a file: float32, row after row."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy().data.cast("B")
