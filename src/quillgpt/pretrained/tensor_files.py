"""Tensors in files, read one at a time straight into a model, so that loading needs no memory but the weights'.

safetensors files are checked by their library and then read by the offsets in their header: a memory-mapped file would
count as used memory in addition to the model. torch's own files (.pt, .bin) are pickles, which can run any code: only
torch's restricted reader reads them.
"""

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from quillgpt import files
from quillgpt.errors import CheckpointError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SCRATCH_BYTES = 1 << 24
"""about the size of the buffer for tensors that are converted or sent to another device"""


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
            if target.ndim == 2 and target.T.is_contiguous():  # in this direction torch transposes six times as fast
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
        """SHA-256 (hex) of the file; of several files, that of their hashes in the order of the names."""
        digests = [files.file_sha256(path) for path in self._paths]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _places(path: Path) -> dict[str, _Place]:
    """Where each tensor is in a file that the safetensors library accepts."""
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


class TorchTensors:
    """The tensors of a file that `read_torch_file` has mapped into memory."""

    def __init__(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        self._tensors = dict(tensors)
        self._path = path
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tuple(x.shape) for name, x in tensors.items()}

    def copy(self, name: str, target: Tensor) -> None:
        """Fill the target with the first len(target) rows of a tensor."""
        tensor = self._tensors[name]
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(f"{self._path}: {name} is {tensor.dtype}, {tensor.layout}; expected plain numbers")
        target.copy_(tensor[: len(target)])

    def sha256(self) -> str:
        """SHA-256 (hex) of the file."""
        return files.file_sha256(self._path)


StoredTensors = SafetensorsFiles | TorchTensors


def read_torch_file(path: Path) -> Any:
    """Read a file of `torch.save`: tensors, numbers, strings, lists and dicts; anything else is a `CheckpointError`.

    A pickle can name any function to be called while it is read. torch's restricted reader allows a few that make
    tensors; a file that names another is refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol; if it matters, an error follows
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reasons = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line]
        reason = f" ({reasons[0][:100]})" if reasons else ""
        raise CheckpointError(f"{path}: not read: it holds more than tensors and plain data{reason}") from None
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = (str(error).splitlines() or [""])[0][:100] or type(error).__name__
        raise CheckpointError(f"{path}: not readable as a file of torch.save: {reason}") from None


def tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the content as a dict of name -> tensor; anything else is a `CheckpointError`."""
    is_dict = isinstance(content, dict)
    if not is_dict or not all(isinstance(name, str) and isinstance(x, Tensor) for name, x in content.items()):
        raise CheckpointError(f"{path}: expected tensors by their names")
    return dict(content)
