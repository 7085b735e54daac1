"""Weights in 4 bits, with a bf16 scale and offset for each group of 32 inputs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.errors import ConfigError
from quillgpt.sample.torch_internals import int4_linear, pack_int4

GROUP = 32
LEVELS = 16
OUTPUT_MULTIPLE = 64
"""the operator needs a multiple of this number of outputs; outputs and groups are padded with zeros"""


def as_int4(linear: nn.Linear) -> nn.Module:
    """The layer with 4-bit weights; a `ConfigError` if this build of torch has no such product."""
    try:
        return Int4Linear(linear.weight.detach().float(), linear.bias)
    except (AttributeError, RuntimeError):
        raise ConfigError(f"quantize = int4: not supported by torch {torch.__version__} here; use int8") from None


class Int4Linear(nn.Module):
    """x W^T + b with W = scale (q - 8) + offset, q from 0 to 15, for each group of 32 inputs of an output."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else bias.detach()  # not a parameter: looking one up is slow, at every token
        padded = F.pad(weight, (0, -self.in_features % GROUP, 0, -self.out_features % OUTPUT_MULTIPLE))
        quantized, self._scales_and_offsets = quantize_int4(padded)
        self._packed = pack_int4(quantized)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.reshape(-1, self.in_features).bfloat16()
        if self.in_features % GROUP:
            rows = F.pad(rows, (0, -self.in_features % GROUP))
        y = int4_linear(rows, self._packed, GROUP, self._scales_and_offsets)
        if self.out_features % OUTPUT_MULTIPLE:
            y = y[:, : self.out_features]
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)


def quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers 0 to 15 (out, in), int32, and the scale and offset of each group (in / 32, out, 2) in bf16.

    The offset is the value of 8, the middle. Rounding uses the scales as they are stored, in bf16.
    """
    groups = weight.unflatten(1, (-1, GROUP))  # (out, in / 32, 32)
    least, most = groups.amin(dim=-1), groups.amax(dim=-1)
    scales = ((most - least) / (LEVELS - 1)).clamp(min=1e-9).bfloat16()
    offsets = (least + scales.float() * (LEVELS // 2)).bfloat16()
    steps = (groups - offsets.float()[..., None]) / scales.float()[..., None]
    quantized = (steps.round() + LEVELS // 2).clamp(0, LEVELS - 1).to(torch.int32).flatten(start_dim=1)
    return quantized, torch.stack((scales, offsets), dim=-1).transpose(0, 1).contiguous()
