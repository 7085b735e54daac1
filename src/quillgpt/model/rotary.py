"""Rotary positions: queries and keys are turned by an angle that grows with their position [Su 2021].

The product of a query and a key then depends on their distance only. Nothing is learned and nothing is stored.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from quillgpt.config import ModelConfig
from quillgpt.model.by_hand import pays_by_hand

BASE = 10_000.0  # the slowest pair of channels turns once in about 2 pi * BASE positions

Rotation = tuple[Tensor, Tensor]
"""cosine and sine of each position's angles, each (T, D / 2)"""


class RotaryPositions(nn.Module):
    """The angles of the positions asked for; the embedding passes through unchanged."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.n_embd // config.n_head

    def forward(self, x: Tensor, start: int) -> tuple[Tensor, Rotation | None]:
        """x: (B, T, C), the tokens at positions start .. start + T - 1. Returns x and their rotation."""
        return x, rotation(x.shape[1], self.head_size, start=start, like=x)


def rotation(count: int, head_size: int, *, start: int, like: Tensor) -> Rotation:
    """Cosine and sine of position * BASE^(-2i / D) for the pairs i = 0 .. D/2 - 1, each (count, D / 2).

    On the device of `like`, in its precision but never below float32: bfloat16 cannot tell position 257 from 256.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    positions = torch.arange(start, start + count, device=like.device, dtype=dtype)
    pairs = torch.arange(0, head_size, 2, device=like.device, dtype=dtype) / head_size
    angles = positions[:, None] * BASE**-pairs
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys (..., T, D); channel i makes a pair with channel i + D/2. Returns the dtype of x."""
    if pays_by_hand(x):
        return _Turn.apply(x, *(part.to(x.dtype) for part in rotation))
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    return turned.to(x.dtype)


class _Turn(torch.autograd.Function):
    """A rotation; its derivative is the rotation back, which needs nothing of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x: (..., T, D); cosine and sine: (T, D / 2) in its dtype."""
        ctx.save_for_backward(cosine, sine)
        return _turned(x, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyrefly: ignore  (torch's decorator hides ctx)
        """By x."""
        cosine, sine = ctx.saved_tensors
        return _turned(gradient, cosine, -sine), None, None


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """(..., T, D) turned by angles of its own dtype, in three passes."""
    turned = x * torch.cat((cosine, cosine), dim=-1)
    for half, other, sign in zip(turned.chunk(2, dim=-1), x.chunk(2, dim=-1)[::-1], (-1, 1), strict=True):
        half.addcmul_(other, sine, value=sign)
    return turned
