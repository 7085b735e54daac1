"""Pointwise attention: an activation function of each score by itself, so that no sum over a row is needed."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from quillgpt.model.attention.entry import Attention
from quillgpt.model.attention.unfused import scaled_scores, unfused_attention, unfused_bytes


def relu2(x: Tensor) -> Tensor:
    """relu(x)^2 [So 2021]."""
    return F.relu(x).square()


def identity(x: Tensor) -> Tensor:
    """x: linear attention, whose weights are the scores, of either sign."""
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

    def weights_of(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
        scores = scaled_scores(query, key)
        length = visible.sum(dim=-1, keepdim=True, dtype=scores.dtype)  # (T, 1)
        return (activation(scores) / length**length_power).masked_fill(~visible, 0.0)

    return unfused_attention(weights_of, query, key, value, dropout=dropout)


def pointwise_entry(activation: Callable[[Tensor], Tensor]) -> Attention:
    """The entry of the menu."""
    return Attention(
        function=partial(pointwise_attention, activation=activation),
        saved_bytes=partial(unfused_bytes, matrices=0 if activation is identity else 1),
        settings={"length_power": "pointwise_length_power"},
        monitored="score",
    )
