"""The menu of positions: how the model knows the order of the tokens.

To add one: write a module whose forward takes the embedded tokens (B, T, C) and the position of the first of them, and
returns the tokens (changed or not) and a rotation of queries and keys (or None); give it a line in `POSITIONS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from quillgpt.config import ModelConfig
from quillgpt.model.precision import uses_custom_backward

BASE = 10_000.0  # the slowest pair of channels completes a turn in about 2 pi * BASE positions
Rotation = tuple[Tensor, Tensor]
"""cosine and sine of each position's angles, each (T, D / 2)"""


class LearnedPositions(nn.Module):
    """A learned vector for each position, added to the token's [Radford 2018, 3.1]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.context_length, config.n_embd))

    def forward(self, x: Tensor, start: int) -> tuple[Tensor, Rotation | None]:
        """x: (B, T, C), the tokens at positions start .. start + T - 1. Returns the sum, and no rotation."""
        return x + self.weight[start : start + x.shape[1]], None


class RotaryPositions(nn.Module):
    """Queries and keys are rotated by an angle proportional to their position [Su 2021].

    Their product then depends only on the distance of the positions. Nothing is learned or stored.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.n_embd // config.n_head

    def forward(self, x: Tensor, start: int) -> tuple[Tensor, Rotation | None]:
        """x: (B, T, C), the tokens at positions start .. start + T - 1. Returns x and their rotation."""
        return x, rotation(x.shape[1], self.head_size, start=start, like=x)


def rotation(count: int, head_size: int, *, start: int, like: Tensor) -> Rotation:
    """Cosine and sine of position * BASE^(-2i / D) for the pairs i = 0 .. D/2 - 1, each (count, D / 2).

    On the device of `like`, in its dtype but at least float32: bfloat16 rounds position 257 to 256.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    positions = torch.arange(start, start + count, device=like.device, dtype=dtype)
    pairs = torch.arange(0, head_size, 2, device=like.device, dtype=dtype) / head_size
    angles = positions[:, None] * BASE**-pairs
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries or keys (..., T, D); channel i makes a pair with channel i + D/2. Returns the dtype of x."""
    if uses_custom_backward(x):
        return _Rotate.apply(x, *(part.to(x.dtype) for part in rotation))
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1).to(x.dtype)


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the inverse rotation, which does not need x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x: (..., T, D); cosine and sine: (T, D / 2) in its dtype."""
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyrefly: ignore  (torch's decorator hides ctx)
        """The gradient of x."""
        cosine, sine = ctx.saved_tensors
        return _rotated(gradient, cosine, -sine), None, None


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x (..., T, D) rotated by angles of its own dtype, in three passes over memory."""
    out = x * torch.cat((cosine, cosine), dim=-1)
    for half, other, sign in zip(out.chunk(2, dim=-1), x.chunk(2, dim=-1)[::-1], (-1, 1), strict=True):
        half.addcmul_(other, sine, value=sign)
    return out


@dataclass(frozen=True, kw_only=True)
class PositionEntry:
    """An entry of the menu.

    has_table: a vector is stored for each of the context_length positions, so a model cannot be given more of them.
    saved_values: numbers saved for the backward pass, for each channel and token.
    """

    build: Callable[[ModelConfig], nn.Module]
    has_table: bool
    saved_values: int


POSITIONS: Mapping[str, PositionEntry] = {
    "learned": PositionEntry(build=LearnedPositions, has_table=True, saved_values=0),
    "rotary": PositionEntry(build=RotaryPositions, has_table=False, saved_values=2),
}
