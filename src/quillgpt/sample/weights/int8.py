"""Weights in 8 bits: a scale for each output, and what they are multiplied with in 8 bits too."""

import warnings

import torch
from torch import Tensor, nn

from quillgpt.sample.weights.int8_fallback import WeightOnlyInt8Linear

LARGEST = 127
TINY = 1e-30
"""instead of a scale of 0, where a row is all zeros"""


def as_int8(linear: nn.Linear) -> nn.Module:
    """The layer with weights of 8 bits, by the faster of two products where this build of torch has it."""
    quantised, scales = rounded(linear.weight)
    bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)
    try:
        return Int8Linear(quantised, scales, bias)
    except (AttributeError, RuntimeError):  # not every build and processor has the product of whole numbers
        return WeightOnlyInt8Linear(quantised, scales, bias)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers (out, in) from -127 to 127, and the scale of each output (out,), float32."""
    weight = weight.detach().float()
    scales = weight.abs().amax(dim=1).clamp(min=TINY) / LARGEST
    return (weight / scales[:, None]).round().to(torch.int8), scales


class Int8Linear(nn.Module):
    """Whole numbers times whole numbers: x is rounded to 8 bits as well, each row by its own size [Dettmers 2022].

    Processors have an instruction for that. Weights alone in 8 bits would first have to be made floats, which takes
    longer than reading them in bf16.
    """

    def __init__(self, quantised: Tensor, scales: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self._out_features = len(quantised)
        with warnings.catch_warnings():  # torch will drop such tensors some day; then the other way is taken
            warnings.simplefilter("ignore")
            offsets = torch.zeros(len(scales), dtype=torch.int64)
            tensor = torch._make_per_channel_quantized_tensor(quantised, scales.double(), offsets, 0)
            self._packed = torch.ops.quantized.linear_prepack(tensor, None)
        self(torch.zeros(1, quantised.shape[1]))  # what this processor cannot do is told here

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.reshape(-1, x.shape[-1]).float()
        try:
            y = self._alone(rows) if len(rows) == 1 else self._each(rows)
        except RuntimeError:  # there is no range of what is not finite; with NaN, the logits tell it
            if rows.isfinite().all():
                raise
            y = rows.new_full((len(rows), self._out_features), torch.nan)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def _alone(self, row: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(row, self._packed)

    def _each(self, rows: Tensor) -> Tensor:
        """The operator has one range for all it is given, so the rows are brought to one size before and back after."""
        sizes = rows.abs().amax(dim=1, keepdim=True).clamp(min=TINY)
        return self._alone(rows / sizes) * sizes
