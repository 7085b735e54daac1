"""What an entry of the menu of attention functions is: the function, and what other parts need to know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor


class AttentionFunction(Protocol):
    """A causal attention: query i of T is at position S - T + i and attends to the positions up to its own."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
        """query: (B, H, T, D), the last T of S positions; key, value: (B, H, S, D). Returns (B, H, T, D)."""
        ...


@dataclass(frozen=True, kw_only=True)
class AttentionSize:
    """The size of a model's attention in one micro-batch, for estimates of memory.

    channels: B * T * C * layers. pairs: B * H * T * T of one layer. value_bytes: of the compute dtype.
    """

    layers: int
    channels: int
    pairs: int
    context_length: int
    value_bytes: int
    device: str
    has_dropout: bool


def stored_weights_bytes(size: AttentionSize) -> int:
    """Memory of the weights (T, T) of every head and layer, stored three times with dropout."""
    return size.layers * size.pairs * size.value_bytes * (3 if size.has_dropout else 1)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """An entry of the menu.

    saved_bytes: memory for the backward pass beyond the fused softmax kernel; by default, the stored weights.
    kernel: how it is computed for (device, dtype, length), in words.
    settings: keyword arguments of the function, each with the setting of the model it comes from.
    monitored: the number whose range is monitored in training, the squared distance or the score; None: any is fine.
    degree: N of a polynomial in x = |q - k|^2 / (2 sqrt(D)), which should fall from 1 to 0 at x = N and grows beyond
    2N; 0: not a polynomial.
    is_normalized: the weights of a query sum to 1.
    is_softmax: it computes softmax, as GPT-2 and its file formats do.
    """

    function: Callable[..., Tensor]
    saved_bytes: Callable[[AttentionSize], int] = stored_weights_bytes
    kernel: Callable[[str, torch.dtype, int], str] = lambda device, dtype, length: "unfused"
    settings: Mapping[str, str] = field(default_factory=dict)
    monitored: Literal["distance", "score"] | None = None
    degree: int = 0
    is_normalized: bool = False
    is_softmax: bool = False
