"""Gaussian attention: a key counts by how near it is to the query, with and without division by the row's sum."""

import math

from torch import Tensor

from quillgpt.model.squared_distance import negative_squared_distance
from quillgpt.model.written_out import mix


def gaussian_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """Sum of exp(-|q - k|^2 / (2 sqrt(D))) v over earlier positions, not normalised [Rho 2025, 4].

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    return mix(_kernel, query, key, value, dropout=dropout)


def normalized_gaussian_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """The same, divided by the sum of the weights.

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    return mix(_normalized_kernel, query, key, value, dropout=dropout)


def _kernel(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    return _argument(query, key, visible).exp()


def _normalized_kernel(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    return _argument(query, key, visible).softmax(dim=-1)


def _argument(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    halved = negative_squared_distance(query, key) / (2 * math.sqrt(query.shape[3]))
    return halved.masked_fill(~visible, -math.inf)
