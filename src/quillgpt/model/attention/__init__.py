"""The menu of attentions: how earlier values are mixed, given queries, keys and values of all heads.

To add one: write a file here with one function of the `Attention` signature and give it a line in `ATTENTION`. The
weights around it (qkv, output projection) are the same for all, and every test of the model then runs with it too.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from quillgpt.model.attention.explicit import explicit_attention
from quillgpt.model.attention.softmax import softmax_attention


class Attention(Protocol):
    """A causal attention: query i of T stands at position S - T + i and sees the positions up to its own."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
        """Mix values; query: (B, H, T, D), the last T of S positions; key, value: (B, H, S, D); -> (B, H, T, D)."""
        ...


ATTENTION: Mapping[str, Attention] = {
    "softmax": softmax_attention,
    "explicit": explicit_attention,
}
