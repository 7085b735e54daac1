"""Gaussian attention: a key counts by how near it is to the query, with and without division by the row's sum.

Both run through torch's fused softmax kernel, which never holds the (T, S) weights: docs/attention.md says how.
"""

import math

from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from quillgpt.model.causal_mask import causal_mask
from quillgpt.model.squared_distance import negative_half_distances, with_norms
from quillgpt.model.written_out import mix, product_dtype

CHANNEL_MULTIPLE = 8  # what fused kernels on GPUs ask for


def gaussian_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """Sum of exp(-|q - k|^2 / (2 sqrt(D))) v over earlier positions, not normalised [Rho 2025].

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).

    The kernel divides by a sum, which is undone: a sink, seen by all, has the weight exp(0) = 1, and in a channel of
    its own the value 1, so that the channel comes out as 1 / (1 + the sum of the weights). Dividing by it leaves the
    sum alone; where every weight underflows, it leaves 0. Dropout would drop the sink: then it is written out.
    """
    if dropout:
        return mix(gaussian_weights, query, key, value, dropout=dropout)
    head_size, is_square = query.shape[3], query.shape[2] == key.shape[2]
    query, key, value = _channels(query, key, value)
    key, value = F.pad(key, (0, 0, 1, 0)), F.pad(value, (0, 0, 1, 0))  # the sink is before the first position
    value[:, :, 0, head_size] = 1.0
    if is_square:  # a query that sees only the sink keeps the triangle; its result is cut off
        query = F.pad(query, (0, 0, 1, 0))
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True, scale=_scale(head_size))[:, :, 1:]
    else:
        mask = _mask(query.shape[2], key.shape[2] - 1, query)
        mask = mask if mask is None else F.pad(mask, (1, 0), value=True)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=_scale(head_size))
    return mixed[..., :head_size] / mixed[..., head_size : head_size + 1]


def normalized_gaussian_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """The same, divided by the sum of the weights.

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    if dropout:
        return mix(normalized_gaussian_weights, query, key, value, dropout=dropout)
    head_size, is_square = query.shape[3], query.shape[2] == key.shape[2]
    query, key, value = _channels(query, key, value)
    if is_square:
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True, scale=_scale(head_size))
    else:
        mask = _mask(query.shape[2], key.shape[2], query)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=_scale(head_size))
    return mixed[..., :head_size]


def _channels(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three with the same number of channels, at least one more than the values have."""
    dtype, head_size = product_dtype(query), query.shape[3]
    query, key = with_norms(query.to(dtype), key.to(dtype))
    channels = -(-query.shape[3] // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
    missing = channels - query.shape[3]
    query, key = F.pad(query, (0, missing)), F.pad(key, (0, missing))
    return query, key, F.pad(value.to(dtype), (0, channels - head_size))


def _mask(new: int, total: int, like: Tensor) -> Tensor | None:
    """Who sees whom where is_causal does not say it; a single query sees all."""
    return None if new == 1 else causal_mask(new, total, like.device)


def _scale(head_size: int) -> float:
    """The factor of -|q - k|^2 / 2."""
    return 1 / math.sqrt(head_size)


def gaussian_weights(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    """exp(-|q - k|^2 / (2 sqrt(D))), written out: (B, H, T, S)."""
    return _exponents(query, key, visible).exp()


def normalized_gaussian_weights(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    """The same, divided by the sum of a row: (B, H, T, S)."""
    return _exponents(query, key, visible).softmax(dim=-1)


def _exponents(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    exponents = negative_half_distances(query, key) * _scale(query.shape[3])
    return exponents.masked_fill(~visible, -math.inf)
