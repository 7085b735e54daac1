"""Tensors in torch's own files (.pt, .bin): pickles, so read by torch's reader of plain data only, never otherwise."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quillgpt import files
from quillgpt.errors import CheckpointError


class TorchTensors:
    """Tensors that `read_torch_file` found, mapped into memory and copied from there."""

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


def read_torch_file(path: Path) -> Any:
    """The content of a file of `torch.save`: tensors, numbers, strings, lists, dicts; anything else is refused unread.

    A pickle can name any function to be called while it is read. torch's restricted reader knows a few that make
    tensors; a file that asks for another is refused, and nothing reads it less strictly.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle's protocol; what follows from it is told below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = next(
            (line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), ""
        )
        reason = f" ({found[:100]})" if found else ""
        raise CheckpointError(f"{path}: not read: it holds more than tensors and plain data{reason}") from None
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = (str(error).splitlines() or [""])[0][:100] or type(error).__name__
        raise CheckpointError(f"{path}: not readable as a file of torch.save: {reason}") from None


def tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """A dict of names and tensors, checked to be one."""
    is_dict = isinstance(content, dict)
    if not is_dict or not all(isinstance(name, str) and isinstance(x, Tensor) for name, x in content.items()):
        raise CheckpointError(f"{path}: expected tensors by their names")
    return dict(content)
