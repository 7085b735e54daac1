"""The menu of feed-forward networks, which a block applies to each position by itself.

To add one: give `MLPS` a line that builds a module (B, T, C) -> (B, T, C) whose last layer is called `project` (the
model initializes what is added to the residual stream differently).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.model.precision import uses_custom_backward


class MLP(nn.Module):
    """A layer four times as wide, an activation, and a layer back [Vaswani 2017, 3.3]."""

    def __init__(self, config: ModelConfig, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        width = config.n_embd
        self.activation = activation
        self.expand = nn.Linear(width, 4 * width, bias=config.bias)
        self.project = nn.Linear(4 * width, width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.project(self.activation(self.expand(x)))


class SwiGLU(nn.Module):
    """A gated network, project(silu(gate(x)) * expand(x)) [Shazeer 2020].

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


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2 [So 2021]."""
    return _SquaredReLU.apply(x) if uses_custom_backward(x) else F.relu(x).square()


class _SquaredReLU(torch.autograd.Function):
    """The derivative of relu(x)^2 is 2 relu(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x of any shape."""
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyrefly: ignore  (torch's decorator hides ctx)
        """The gradient of x."""
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)


@dataclass(frozen=True, kw_only=True)
class MLPEntry:
    """An entry of the menu.

    build: makes the module. Initialization knows its output layer by the name `project`, its input layer by `expand`;
    a vector starts at 1 if its name does not end in `bias`.
    saved_bytes: memory for the backward pass beyond GPT-2's, for each channel and token.
    gpt2_activation: the name of its activation in transformers' `GPT2Config`; empty: not in `GPT2LMHeadModel`.
    """

    build: Callable[[ModelConfig], nn.Module]
    saved_bytes: int = 0
    gpt2_activation: str = ""


MLPS: Mapping[str, MLPEntry] = {
    # GPT-2's: GELU in its tanh form [Hendrycks 2016, 2]
    "gelu": MLPEntry(build=partial(MLP, activation=partial(F.gelu, approximate="tanh")), gpt2_activation="gelu_new"),
    "gelu-exact": MLPEntry(build=partial(MLP, activation=F.gelu), gpt2_activation="gelu"),  # nanoGPT's
    "relu2": MLPEntry(build=partial(MLP, activation=squared_relu)),
    # one multiplication, which can be computed on encrypted numbers [Gilad 2016]
    "square": MLPEntry(build=partial(MLP, activation=torch.square)),
    "swiglu": MLPEntry(build=SwiGLU, saved_bytes=8),
}
