"""The menu of feed-forward networks: what a block computes at each position by itself.

To add one: write a function from the model's settings to a module (B, T, C) -> (B, T, C) whose last layer is called
`project` (the model starts residual projections smaller), and give it a line in `MLPS`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.model.by_hand import pays_by_hand


class MLP(nn.Module):
    """Four times as wide, an activation, and back [Vaswani 2017, 3.3]."""

    def __init__(self, config: ModelConfig, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        width = config.n_embd
        self.activation = activation
        self.expand = nn.Linear(width, 4 * width, bias=config.bias)
        self.project = nn.Linear(4 * width, width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.project(self.activation(self.expand(x)))


class GatedMLP(nn.Module):
    """One layer gates the other, then back [Shazeer 2020]: project(silu(gate(x)) * expand(x)).

    Three matrices instead of two, so each is 8/3 C wide instead of 4 C, rounded up to a multiple of 8.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.n_embd
        hidden = -(-8 * width // (3 * 8)) * 8  # C = 768: 2048; C = 64: 170.7 becomes 176
        self.gate = nn.Linear(width, hidden, bias=config.bias)
        self.expand = nn.Linear(width, hidden, bias=config.bias)
        self.project = nn.Linear(hidden, width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.project(F.silu(self.gate(x)) * self.expand(x))


def gelu(config: ModelConfig) -> nn.Module:
    """GPT-2's network: GELU in its tanh form [Hendrycks 2016, 2]."""
    return MLP(config, nn.GELU(approximate="tanh"))


def gelu_exact(config: ModelConfig) -> nn.Module:
    """GELU itself, x times the normal distribution's function [Hendrycks 2016, 2], as nanoGPT has it."""
    return MLP(config, nn.GELU())


def relu2(config: ModelConfig) -> nn.Module:
    """The square of ReLU instead of GELU [So 2021]."""
    return MLP(config, _squared_relu)


def square(config: ModelConfig) -> nn.Module:
    """The square itself: one multiplication, so that it can be computed on encrypted numbers [Gilad 2016]."""
    return MLP(config, torch.square)


def swiglu(config: ModelConfig) -> nn.Module:
    """SwiGLU [Shazeer 2020]."""
    return GatedMLP(config)


def _squared_relu(x: Tensor) -> Tensor:
    return _SquaredReLU.apply(x) if pays_by_hand(x) else F.relu(x).square()


class _SquaredReLU(torch.autograd.Function):
    """relu(x)^2, whose derivative is 2 relu(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x of any shape."""
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyrefly: ignore  (torch's decorator hides ctx)
        """By x."""
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)


MLPS: Mapping[str, Callable[[ModelConfig], nn.Module]] = {
    "gelu": gelu,
    "gelu-exact": gelu_exact,
    "relu2": relu2,
    "square": square,
    "swiglu": swiglu,
}
