"""Gaussian attention: a key is weighted by its distance from the query, with and without division by the row's sum.

Both are computed by torch's fused softmax kernel, which never holds the (T, S) weights; docs/attention.md explains how.
"""

import math
from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from quillgpt.model.attention.entry import Attention, AttentionSize
from quillgpt.model.attention.unfused import (
    DISTANCE_BYTES,
    causal_mask,
    negative_half_distances,
    unfused_attention,
    unfused_bytes,
    with_norms,
)
from quillgpt.model.precision import product_dtype

CHANNEL_MULTIPLE = 8  # required by fused kernels on GPUs


def gaussian_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """Sum of exp(-|q - k|^2 / (2 sqrt(D))) v over earlier positions, not normalized [Rho 2025].

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).

    The kernel divides by a sum, which is undone: a sink, visible to all queries, has the weight exp(0) = 1 and, in one
    extra channel, the value 1, so that the channel of the result is 1 / (1 + the sum of the weights). Dividing by it
    leaves the sum; where every weight underflows, 0. Dropout would drop the sink: then the weights are computed.
    """
    if dropout:
        return unfused_attention(gaussian_weights, query, key, value, dropout=dropout)
    head_size = query.shape[3]
    out = _fused(query, key, value, sinks=1)
    return out[..., :head_size] / out[..., head_size : head_size + 1]


def normalized_gaussian_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """The same, divided by the sum of the weights.

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    if dropout:
        return unfused_attention(normalized_gaussian_weights, query, key, value, dropout=dropout)
    return _fused(query, key, value, sinks=0)[..., : query.shape[3]]


def _fused(query: Tensor, key: Tensor, value: Tensor, *, sinks: int) -> Tensor:
    """Softmax over -|q - k|^2 / (2 sqrt(D)) and, before the first key, over `sinks` zeros; (B, H, T, more than D)."""
    new, total, head_size = query.shape[2], key.shape[2], query.shape[3]
    dtype, is_square = product_dtype(query), bool(new == total)  # not a symbol, when a graph for all sizes is traced
    query, key = with_norms(query.to(dtype), key.to(dtype))
    channels = -(-query.shape[3] // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
    missing = channels - query.shape[3]
    first = sinks if is_square else 0  # a query that sees only the sink keeps the triangle; its result is cut off
    query, key = F.pad(query, (0, missing, first, 0)), F.pad(key, (0, missing, sinks, 0))
    value = F.pad(value.to(dtype), (0, channels - head_size, sinks, 0))
    if sinks:
        value[:, :, :sinks, head_size] = 1.0
    mask = None
    if not is_square and new > 1:  # a single query sees all
        mask = F.pad(causal_mask(new, total, query.device), (sinks, 0), value=True)
    scale = 1 / math.sqrt(head_size)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_square, scale=scale)[
        :, :, first:
    ]


def gaussian_weights(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    """exp(-|q - k|^2 / (2 sqrt(D))), unfused: (B, H, T, S)."""
    return _exponents(query, key, visible).exp()


def normalized_gaussian_weights(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    """The same, divided by the sum of a row: (B, H, T, S)."""
    return _exponents(query, key, visible).softmax(dim=-1)


def _exponents(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    exponents = negative_half_distances(query, key) * (1 / math.sqrt(query.shape[3]))
    return exponents.masked_fill(~visible, -math.inf)


def _saved_bytes(size: AttentionSize) -> int:
    """Queries, keys and values again, with channels for the norms."""
    if size.has_dropout:
        return unfused_bytes(size, channel_bytes=DISTANCE_BYTES)
    return size.channels * (4 * size.value_bytes + 3)


GAUSSIAN = Attention(
    function=gaussian_attention,
    saved_bytes=_saved_bytes,
    kernel=lambda device, dtype, length: "torch's fused kernel, with channels for the norms",
    monitored="distance",
)
GAUSSIAN_NORMALIZED = replace(GAUSSIAN, function=normalized_gaussian_attention, is_normalized=True)
