"""Weights in 8 bits: a scale for each output, and inputs in 8 bits too if torch has such a product here."""

import torch
from torch import Tensor, nn

from quillgpt.sample.torch_internals import int8_linear, pack_int8, weight_only_int8_linear

MAX_INT8 = 127
MIN_SCALE = 1e-30
"""instead of a scale of 0 for a row of zeros"""


def as_int8(linear: nn.Linear) -> nn.Module:
    """The layer with 8-bit weights, with the faster of two products if this build of torch has it."""
    quantized, scales = quantize_int8(linear.weight)
    bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)
    try:
        return Int8Linear(quantized, scales, bias)
    except (AttributeError, RuntimeError):  # not every build and processor has the integer product
        return WeightOnlyInt8Linear(quantized, scales, bias)


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (out, in) from -127 to 127, and the scale of each output (out,), fp32."""
    weight = weight.detach().float()
    scales = weight.abs().amax(dim=1).clamp(min=MIN_SCALE) / MAX_INT8
    return (weight / scales[:, None]).round().to(torch.int8), scales


class Int8Linear(nn.Module):
    """Integers times integers: x is quantized to 8 bits as well, each row with its own scale [Dettmers 2022].

    Processors have an instruction for that. 8-bit weights with float inputs have to be converted first, which takes
    longer than reading bf16 weights.
    """

    def __init__(self, quantized: Tensor, scales: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self._out_features = len(quantized)
        self._packed = pack_int8(quantized, scales)
        self(torch.zeros(1, quantized.shape[1]))  # fails here if the processor does not support it

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.reshape(-1, x.shape[-1]).float()
        try:
            y = int8_linear(rows, self._packed) if len(rows) == 1 else self._scaled_product(rows)
        except RuntimeError:  # non-finite inputs have no range; NaN outputs lead to an error at the logits
            if rows.isfinite().all():
                raise
            y = rows.new_full((len(rows), self._out_features), torch.nan)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def _scaled_product(self, rows: Tensor) -> Tensor:
        """Scale the rows to one size before the product and back after it, because it has one range for all rows."""
        sizes = rows.abs().amax(dim=1, keepdim=True).clamp(min=MIN_SCALE)
        return int8_linear(rows / sizes, self._packed) * sizes


class WeightOnlyInt8Linear(nn.Module):
    """x W^T + b with W = scale q, converted to bf16 while it is read: half the memory, not faster than native bf16."""

    def __init__(self, quantized: Tensor, scales: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self._quantized, self._scales = quantized, scales.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = weight_only_int8_linear(x.reshape(-1, x.shape[-1]).bfloat16(), self._quantized, self._scales)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)
