"""Weights in 4 bits: a scale and an offset for each group of 32 inputs, the numbers between in bf16."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.errors import ConfigError

GROUP = 32
LEVELS = 16
ROWS = 64
"""the operator takes outputs by this many; groups and outputs that are lacking are filled with zeros"""


def as_int4(linear: nn.Linear) -> nn.Module:
    """The layer with weights of 4 bits; a `ConfigError` where this build of torch has no such product."""
    try:
        return Int4Linear(linear.weight.detach().float(), linear.bias)
    except (AttributeError, RuntimeError):
        raise ConfigError(f"quantize = int4: torch {torch.__version__} cannot do it here; use int8") from None


class Int4Linear(nn.Module):
    """x W^T + b with W = scale (q - 8) + offset, q from 0 to 15, for each group of 32 inputs of an output."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else bias.detach()  # no parameter: those are looked up slowly, at every token
        padded = F.pad(weight, (0, -self.in_features % GROUP, 0, -self.out_features % ROWS))
        quantised, scales_and_offsets = rounded(padded)
        self._scales_and_offsets = scales_and_offsets
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantised, 1)
        self._product = torch.ops.aten._weight_int4pack_mm_for_cpu.default

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.reshape(-1, self.in_features).bfloat16()
        if self.in_features % GROUP:
            rows = F.pad(rows, (0, -self.in_features % GROUP))
        y = self._product(rows, self._packed, GROUP, self._scales_and_offsets)
        if self.out_features % ROWS:
            y = y[:, : self.out_features]
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers 0 to 15 (out, in), and each group's scale and offset (in / 32, out, 2) in bf16.

    The offset is the value of 8, in the middle. Rounded against the scales as they are kept, in bf16.
    """
    groups = weight.unflatten(1, (-1, GROUP))  # (out, in / 32, 32)
    least, most = groups.amin(dim=-1), groups.amax(dim=-1)
    scales = ((most - least) / (LEVELS - 1)).clamp(min=1e-9).bfloat16()
    offsets = (least + scales.float() * (LEVELS // 2)).bfloat16()
    steps = (groups - offsets.float()[..., None]) / scales.float()[..., None]
    quantised = (steps.round() + LEVELS // 2).clamp(0, LEVELS - 1).to(torch.int32).flatten(start_dim=1)
    return quantised, torch.stack((scales, offsets), dim=-1).transpose(0, 1).contiguous()
