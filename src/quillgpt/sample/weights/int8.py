"""Weights in 8 bits: a scale for each output, and for the vector they are multiplied with a scale of its own."""

import warnings

import torch
from torch import Tensor, nn

from quillgpt.sample.weights.int8_fallback import WeightOnlyInt8Linear

LARGEST = 127


def int8(linear: nn.Linear) -> nn.Module:
    """The layer with weights of 8 bits, by the fastest product that this build of torch has."""
    quantised, scales = rounded(linear.weight)
    bias = None if linear.bias is None else linear.bias.detach().float()
    try:
        return Int8Linear(quantised, scales, bias)
    except (AttributeError, RuntimeError, NotImplementedError):  # a build without these operators, or a processor
        return WeightOnlyInt8Linear(quantised, scales, bias)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers (out, in) from -127 to 127 and the scales (out,) that they are multiplied with, float32."""
    weight = weight.detach().float()
    scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (weight / scales[:, None]).round().to(torch.int8), scales


class Int8Linear(nn.Module):
    """Whole numbers times whole numbers: x is rounded to 8 bits too, every row by its own range [Dettmers 2022, 2.1].

    That is what processors have instructions for; only weights in 8 bits would have to be made floats first, which takes
    longer than reading them in bf16.
    """

    def __init__(self, quantised: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        with warnings.catch_warnings():  # torch means to drop these tensors some day; `int8` then takes the other way
            warnings.simplefilter("ignore")
            offsets = torch.zeros(len(scales), dtype=torch.int64)
            tensor = torch._make_per_channel_quantized_tensor(quantised, scales.double(), offsets, 0)
            self._packed = torch.ops.quantized.linear_prepack(tensor, bias)
        self(torch.zeros(1, quantised.shape[1]))  # what this processor cannot do is told here

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.flatten(end_dim=-2).float()
        return torch.ops.quantized.linear_dynamic(rows, self._packed).unflatten(0, x.shape[:-1]).to(x.dtype)
