"""Weights in 8 bits where torch has no product of whole numbers: they are made floats while they are read."""

import torch
from torch import Tensor, nn


class WeightOnlyInt8Linear(nn.Module):
    """x W^T + b with W = scale q; half the memory of bf16, but not faster where bf16 is native."""

    def __init__(self, quantised: Tensor, scales: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self._quantised, self._scales = quantised, scales.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        y = torch._weight_int8pack_mm(rows, self._quantised, self._scales)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)
