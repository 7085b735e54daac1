"""Pointwise attention: an activation of each score by itself, so that no row has to be summed before it is used."""

import math
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from quillgpt.model.written_out import in_full, mix


def relu2(x: Tensor) -> Tensor:
    """relu(x)^2 [So 2021]."""
    return F.relu(x).square()


def identity(x: Tensor) -> Tensor:
    """x itself: the weights are the scores, of either sign."""
    return x


POINTWISE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "pointwise-relu": F.relu,
    "pointwise-gelu": F.gelu,
    "pointwise-relu2": relu2,
    "pointwise-silu": F.silu,
    "pointwise-tanh": Tensor.tanh,
    "pointwise-sigmoid": Tensor.sigmoid,
    "pointwise-identity": identity,
    "pointwise-softplus": F.softplus,
}


def pointwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    dropout: float,
    activation: Callable[[Tensor], Tensor],
    length_power: float = 1.0,
) -> Tensor:
    """Sum of activation(q k / sqrt(D)) / L^length_power v, L the number of positions a query sees [Wortsman 2023].

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    weigh = partial(_weights, activation=activation, length_power=length_power)
    return mix(weigh, query, key, value, dropout=dropout)


def _weights(
    query: Tensor, key: Tensor, visible: Tensor, *, activation: Callable[[Tensor], Tensor], length_power: float
) -> Tensor:
    scores = in_full((query / math.sqrt(query.shape[3])) @ key.transpose(-2, -1))  # (B, H, T, S)
    length = visible.sum(dim=-1, keepdim=True, dtype=scores.dtype)  # (T, 1)
    weights = activation(scores) / length**length_power
    return weights.masked_fill(~visible, 0.0)
