"""Counts the memory of tensors as torch's operations make them: exact, the same on every machine, no timing."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """`peak_bytes` of all tensors alive at one time, and `largest` number of elements of a floating-point one."""

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.peak_bytes = self.largest = self._bytes = 0
        self._alive: set[int] = set()
        for tensor in existing:
            self._count(tensor)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
                if value.is_floating_point():
                    self.largest = max(self.largest, value.numel())
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self._bytes += size
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._bytes -= size
