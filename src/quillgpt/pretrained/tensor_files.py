"""Tensors in files, read one at a time straight into place, so that loading takes the weights' memory, no more.

safetensors files are checked by their library and then read by the offsets of their header: a memory-mapped file would
count as used memory beside the model that is filled from it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

import safetensors
import torch
from torch import Tensor

from quillgpt import files
from quillgpt.errors import CheckpointError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SCRATCH_BYTES = 1 << 24
"""what is converted or sent to another device goes through a piece of memory of about this size"""


class StoredTensors(Protocol):
    """The tensors of one or more files."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor by its name."""
        ...

    def copy(self, name: str, target: Tensor) -> None:
        """Fill the target with the first len(target) rows of a tensor, converted to the target's dtype."""
        ...

    def sha256(self) -> str:
        """SHA-256 (hex) of the file, or of those of several files."""
        ...


@dataclass(frozen=True)
class _Place:
    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str


class SafetensorsFiles:
    """The tensors of safetensors files, which together have each name once."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = sorted(paths)
        self._places: dict[str, _Place] = {}
        for path in self._paths:
            self._places |= _places(path)
        self.shapes = {name: place.shape for name, place in self._places.items()}

    def copy(self, name: str, target: Tensor) -> None:
        """Fill the target with the first len(target) rows of a tensor; it may be a transposed view of a matrix."""
        place = self._places[name]
        if place.dtype not in DTYPES:
            raise CheckpointError(f"{place.path}: {name} has dtype {place.dtype}; expected one of {', '.join(DTYPES)}")
        with FileIO(place.path) as file:
            file.seek(place.offset)
            dtype = DTYPES[place.dtype]
            if target.is_contiguous() and target.device.type == "cpu" and target.dtype == dtype:
                _read(file, target, place.path)
                return
            if target.ndim == 2 and target.T.is_contiguous():  # seen from here, torch transposes six times as fast
                scratch = torch.empty(target.shape, dtype=dtype)
                _read(file, scratch, place.path)
                target.T.copy_(scratch.T)
                return
            rows = max(1, SCRATCH_BYTES // (dtype.itemsize * max(1, target[:1].numel())))
            for part in target.split(rows):
                scratch = torch.empty(part.shape, dtype=dtype)
                _read(file, scratch, place.path)
                part.copy_(scratch)

    def sha256(self) -> str:
        """SHA-256 (hex) of the file; of several, of their digests in the order of the names."""
        digests = [files.file_sha256(path) for path in self._paths]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _places(path: Path) -> dict[str, _Place]:
    """Where each tensor lies in a file that its library finds sound."""
    try:
        with safetensors.safe_open(path, framework="pt"):  # checks sizes, overlaps, and that nothing is cut off
            pass
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors: {error}") from None
    header.pop("__metadata__", None)
    return {
        name: _Place(path, 8 + header_bytes + entry["data_offsets"][0], tuple(entry["shape"]), entry["dtype"])
        for name, entry in header.items()
    }


def _read(file: FileIO, target: Tensor, path: Path) -> None:
    """Fill a contiguous tensor on the CPU with the next bytes of the file."""
    if target.numel() == 0:
        return
    view = target.detach().reshape(-1).view(torch.uint8).numpy().data
    while view:
        count = file.readinto(view)  # at most 2 GB at a time
        if not count:
            raise CheckpointError(f"{path}: ended while it was read; is it being written?")
        view = view[count:]
