"""The menu of attentions: how earlier values are mixed, given queries, keys and values of all heads.

To add one: write a file here with one function of the `Attention` signature and give it a line in `ATTENTION`. The
weights around it (qkv, output projection) are the same for all, and every test of the model then runs with it too.
"""

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from torch import Tensor

from quillgpt.config import ModelConfig
from quillgpt.errors import pick
from quillgpt.model.attention.explicit import explicit_attention
from quillgpt.model.attention.gaussian import gaussian_attention, normalized_gaussian_attention
from quillgpt.model.attention.gaussian_poly import PREFIX, gaussian_poly_attention, power_of
from quillgpt.model.attention.pointwise import POINTWISE, pointwise_attention
from quillgpt.model.attention.power import power_attention
from quillgpt.model.attention.softmax import softmax_attention


class Attention(Protocol):
    """A causal attention: query i of T stands at position S - T + i and sees the positions up to its own."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
        """Mix values; query: (B, H, T, D), the last T of S positions; key, value: (B, H, S, D); -> (B, H, T, D)."""
        ...


ATTENTION: Mapping[str, Attention] = {
    "softmax": softmax_attention,
    "explicit": explicit_attention,
    "gaussian": gaussian_attention,
    "gaussian-normalized": normalized_gaussian_attention,
    **{f"{PREFIX}{power}": partial(gaussian_poly_attention, power=power) for power in (2, 4, 8)},
    **{name: partial(pointwise_attention, activation=activation) for name, activation in POINTWISE.items()},
    "power": power_attention,
}
"""`find_attention` knows gaussian-poly-N for the other even N too."""


def find_attention(name: str) -> Attention:
    """The attention of that name; a `ConfigError` names the nearest, or says that N has to be even."""
    if name.startswith(PREFIX):
        return partial(gaussian_poly_attention, power=power_of(name))
    return pick(ATTENTION, name, "attention")


def attention_of(config: ModelConfig) -> Attention:
    """The model's attention, with the settings that only some of the entries have."""
    if config.attention in POINTWISE:
        activation, length_power = POINTWISE[config.attention], config.pointwise_length_power
        return partial(pointwise_attention, activation=activation, length_power=length_power)
    return find_attention(config.attention)
