"""Weights in 8 bits where torch has no product of whole numbers: made floats while they are read."""

import torch
from torch import Tensor, nn


class WeightOnlyInt8Linear(nn.Module):
    """x W^T + b with W = scale q; slower than bf16 where bf16 is native, and half the memory."""

    def __init__(self, quantised: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._quantised, self._scales = quantised, scales.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.flatten(end_dim=-2).bfloat16()
        y = torch._weight_int8pack_mm(rows, self._quantised, self._scales).unflatten(0, x.shape[:-1]).to(x.dtype)
        return y if self.bias is None else y + self.bias
