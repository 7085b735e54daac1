"""The only module of sample/ that uses private torch operators, a process-wide switch and a cloned code object.

Each makes generation on a CPU faster than the public function for the same result; docs/sampling.md has the figures.
torch may remove any of them: an operator that is missing is an `AttributeError` or `RuntimeError` when a layer is made.
"""

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor


class WithoutOneDNN:
    """Context in which torch does not use oneDNN. The switch is the process's: other threads see it too."""

    def __enter__(self) -> None:
        self._was_enabled = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch._C._set_mkldnn_enabled(self._was_enabled)


def compile_clone(function: Callable[..., Tensor], options: dict[str, Any]) -> Callable[..., Tensor]:
    """Compile a copy of the function at its first call, without guards on modules.

    Compiled code is cached per code object: with its own, a model cannot get the code compiled for another one.
    """
    assert isinstance(function, FunctionType)
    clone = FunctionType(function.__code__.replace(), function.__globals__)
    unguarded = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    return torch.compile(clone, dynamic=True, options=unguarded | options)


def reorder_bf16(weight: Tensor) -> Tensor:
    """The weights (out, in) in oneDNN's own order, for `reordered_linear`."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)


def reordered_linear(x: Tensor, reordered: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b with reordered bf16 weights: (..., in) -> (..., out)."""
    return torch.ops.mkldnn._linear_pointwise(x, reordered, bias, "none", [], "")


def pack_int8(quantized: Tensor, scales: Tensor) -> Any:
    """Pack int8 weights (out, in) and the scales of the outputs (out,) for `int8_linear`."""
    with warnings.catch_warnings():  # torch announces that it will remove them
        warnings.simplefilter("ignore")
        zero_points = torch.zeros(len(scales), dtype=torch.int64)
        weight = torch._make_per_channel_quantized_tensor(quantized, scales.double(), zero_points, 0)
        return torch.ops.quantized.linear_prepack(weight, None)


def int8_linear(x: Tensor, packed: Any) -> Tensor:
    """x W^T with x (N, in), fp32, quantized to 8 bits in one range for all rows."""
    return torch.ops.quantized.linear_dynamic(x, packed)


def weight_only_int8_linear(x: Tensor, quantized: Tensor, scales: Tensor) -> Tensor:
    """x W^T with x (N, in) and the scales (out,) in bf16."""
    return torch._weight_int8pack_mm(x, quantized, scales)


def pack_int4(quantized: Tensor) -> Tensor:
    """Pack int32 weights (out, in) from 0 to 15 for `int4_linear`."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantized, 1)


def int4_linear(x: Tensor, packed: Tensor, group_size: int, scales_and_offsets: Tensor) -> Tensor:
    """x W^T with x (N, in) and scales and offsets (in / group_size, out, 2) in bf16."""
    return torch.ops.aten._weight_int4pack_mm_for_cpu.default(x, packed, group_size, scales_and_offsets)
