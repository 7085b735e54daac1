"""Weights in their own dtype; on a CPU, the fastest kernel for each number of rows."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.sample.torch_internals import WithoutOneDNN, reorder_bf16, reordered_linear

MAX_REORDERED_ROWS = 64
"""up to this number of rows, bf16 weights reordered once for oneDNN are faster than reordering at each call"""
MAX_CHUNKED_ROWS = 16
"""up to this number of rows, a chunked fp32 product is faster"""
CHUNKS = 16
MIN_CHUNKED_WEIGHTS = 2**16
"""a smaller matrix is read by one thread before another one starts"""


def as_plain(linear: nn.Linear) -> nn.Module:
    """The layer itself, or on a CPU the same weights with a faster product for few rows."""
    weight = linear.weight
    if weight.device.type == "cpu":
        if weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available():
            return BF16Linear(linear)
        if weight.dtype == torch.float32 and torch.backends.mkl.is_available() and _is_chunked(weight):
            return FP32Linear(linear)
    return linear


def _is_chunked(weight: Tensor) -> bool:
    return weight.numel() >= MIN_CHUNKED_WEIGHTS and math.gcd(CHUNKS, len(weight)) > 1 and weight.is_contiguous()


class PlainLinear(nn.Module):
    """x W^T + b with the weights of a linear layer; subclasses have faster products of few rows."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.numel() // x.shape[-1]
        if torch.compiler.is_compiling():
            return matvec(x, self.weight, self.bias) if rows == 1 else F.linear(x, self.weight, self.bias)
        return self.product(x, rows)

    def product(self, x: Tensor, rows: int) -> Tensor:
        """x W^T + b in eager mode, where x (..., in) has this number of rows."""
        return F.linear(x, self.weight, self.bias)


class FP32Linear(PlainLinear):
    """x W^T + b in fp32 on a CPU.

    MKL computes the product of one row and a matrix on one thread, but a batch of products on all threads. The outputs
    are therefore chunked, each the product of the row and a part of the matrix: nothing is copied, no sum is split.
    """

    def product(self, x: Tensor, rows: int) -> Tensor:
        """Chunked for few rows on several threads."""
        if rows > MAX_CHUNKED_ROWS or torch.get_num_threads() == 1:
            return super().product(x, rows)
        count, in_features = math.gcd(CHUNKS, len(self.weight)), self.weight.shape[1]
        chunks = self.weight.view(count, -1, in_features).mT  # (chunks, in, out / chunks)
        y = torch.bmm(x.reshape(1, rows, -1).expand(count, -1, -1), chunks)
        y = y.transpose(0, 1).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y.add_(self.bias)


class BF16Linear(PlainLinear):
    """x W^T + b in bf16 on a CPU.

    torch passes bf16 products to oneDNN, which is made for many rows: one row takes twice as long there as with torch's
    own matrix-vector product. Few rows are faster with weights reordered for oneDNN, which takes the same memory again
    and happens at the first such call.
    """

    _reordered: Tensor | None = None

    def product(self, x: Tensor, rows: int) -> Tensor:
        """Without oneDNN for one row, with reordered weights for a few."""
        if rows > MAX_REORDERED_ROWS:
            return super().product(x, rows)
        if rows == 1:
            with WithoutOneDNN():
                return super().product(x, rows)
        if self._reordered is None:
            self._reordered = reorder_bf16(self.weight)
        return reordered_linear(x, self._reordered, self.bias)


def matvec(row: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product of one row, compiled into one loop over the weights; sums are at least in fp32."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    y = (weight.to(wide) * row.reshape(-1).to(wide)).sum(dim=-1)
    y = y if bias is None else y + bias.to(wide)
    return y.to(row.dtype).view(*row.shape[:-1], -1)
