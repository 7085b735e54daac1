"""Weights as they are; on a CPU, each number of rows by the kernel that is fastest for it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_ROWS = 64
"""up to here a product by bf16 weights in oneDNN's own order is faster than one that orders them on the way"""
FEW_ROWS_IN_PARTS = 16
"""up to here an fp32 product in parts is faster"""
PARTS = 16
FEWEST_WEIGHTS_IN_PARTS = 2**16
"""of a smaller matrix one thread has read all before another one has begun"""


def as_plain(linear: nn.Linear) -> nn.Module:
    """The layer itself, or on a CPU the same weights with a faster product of one row or a few."""
    weight = linear.weight
    if weight.device.type == "cpu":
        if weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available():
            return BrainLinear(linear)
        if weight.dtype == torch.float32 and torch.backends.mkl.is_available() and _pays_in_parts(weight):
            return SingleLinear(linear)
    return linear


class SingleLinear(nn.Module):
    """x W^T + b in single precision on a CPU.

    MKL multiplies a row by a matrix on one thread, however many there are, but several products at once on all of
    them. So the outputs are cut into parts, each the product of the row and a part of the matrix: nothing is copied,
    and no sum is cut.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._count = math.gcd(PARTS, len(linear.weight))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.numel() // x.shape[-1]
        if torch.compiler.is_compiling():
            return written_out(x, self.weight, self.bias) if rows == 1 else F.linear(x, self.weight, self.bias)
        if rows > FEW_ROWS_IN_PARTS or torch.get_num_threads() == 1:
            return F.linear(x, self.weight, self.bias)
        parts = self.weight.view(self._count, -1, self.weight.shape[1]).mT  # (parts, in, out / parts)
        y = torch.bmm(x.reshape(1, rows, -1).expand(self._count, -1, -1), parts)
        y = y.transpose(0, 1).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y.add_(self.bias)


class BrainLinear(nn.Module):
    """x W^T + b in bf16, Google Brain's floats, on a CPU.

    torch gives bf16 products to oneDNN, which is made for many rows. One row is half as fast there as by torch's own
    product of a matrix and a vector. A few rows are faster when the weights were ordered for oneDNN before, which takes
    as much memory again and is done when a few rows first come.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._ordered: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.numel() // x.shape[-1]
        if torch.compiler.is_compiling():
            return written_out(x, self.weight, self.bias) if rows == 1 else F.linear(x, self.weight, self.bias)
        if rows > FEW_ROWS:
            return F.linear(x, self.weight, self.bias)
        if rows == 1:
            with OneRow():
                return F.linear(x, self.weight, self.bias)
        if self._ordered is None:
            self._ordered = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)
        return torch.ops.mkldnn._linear_pointwise(x, self._ordered, self.bias, "none", [], "")


WRITTEN_OUT = (SingleLinear, BrainLinear)
"""whose product of one row a compiler sees as `written_out`"""


def written_out(row: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product of one row for a compiler, which makes one loop over the weights of it; sums are at least in fp32."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    y = (weight.to(wide) * row.reshape(-1).to(wide)).sum(dim=-1)
    y = y if bias is None else y + bias.to(wide)
    return y.to(row.dtype).view(*row.shape[:-1], -1)


class OneRow:
    """While this is open, torch multiplies by itself and does not ask oneDNN. The switch is the process's."""

    def __enter__(self) -> None:
        self._was_enabled = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch._C._set_mkldnn_enabled(self._was_enabled)


def _pays_in_parts(weight: Tensor) -> bool:
    return weight.numel() >= FEWEST_WEIGHTS_IN_PARTS and math.gcd(PARTS, len(weight)) > 1 and weight.is_contiguous()
