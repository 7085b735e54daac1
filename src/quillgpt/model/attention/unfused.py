"""Building blocks of the menu: the causal mask, attention with explicit weights, squared distances as one product."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quillgpt.model.attention.entry import AttentionSize
from quillgpt.model.precision import at_least_fp32, is_autocast

BLOCK_QUERIES = 256
"""queries in a block; the weights of longer sequences are recomputed in the backward pass, block by block"""
NORM_CHANNELS = 4  # two for the norm of the query, two for that of the key
WEIGHT_BYTES = 4  # weights are computed in fp32
DISTANCE_BYTES = 13  # saved for each channel of queries and keys by `negative_half_distances`, measured

WeightFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""query (B, H, T, D), key (B, H, S, D), causal mask (T, S) -> weights (B, H, T, S), 0 where the mask is false"""


def causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """True where a query may attend, (new, total); the queries are the last positions.

    causal_mask(2, 4, ...) is   1 1 1 0    position 2 sees 0, 1, 2
                                1 1 1 1    position 3 sees all
    """
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(diagonal=total - new)


def unfused_attention(
    weights_of: WeightFunction, query: Tensor, key: Tensor, value: Tensor, *, dropout: float
) -> Tensor:
    """The weighted sum of the values; query: (B, H, T, D), key and value: (B, H, S, D); returns (B, H, T, D).

    More queries than a block are processed block by block, each with the keys that it can attend to, and the weights of
    a block are recomputed in the backward pass: memory does not grow with T x S, and half of the pairs are skipped.
    """
    new, total = query.shape[2], key.shape[2]
    if torch.compiler.is_exporting() or new <= BLOCK_QUERIES:  # a comparison would specialize the graph
        return attention_block(weights_of, query, key, value, dropout)
    blocks = []
    for start in range(0, new, BLOCK_QUERIES):
        end = min(start + BLOCK_QUERIES, new)
        visible = total - new + end
        heads = query[:, :, start:end], key[:, :, :visible], value[:, :, :visible]
        options = {"use_reentrant": False, "preserve_rng_state": dropout > 0}
        blocks.append(checkpoint(attention_block, weights_of, *heads, dropout, **options))
    return torch.cat(blocks, dim=2)


def attention_block(weights_of: WeightFunction, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """The same with all weights in one matrix, (B, H, T, S), which is saved for the backward pass."""
    visible = causal_mask(query.shape[2], key.shape[2], query.device)
    weights = F.dropout(weights_of(query, key, visible), dropout)
    return weights.to(value.dtype) @ value  # (B, H, T, D)


def scaled_scores(query: Tensor, key: Tensor) -> Tensor:
    """q k^T / sqrt(D) of every pair, at least in fp32; query: (B, H, T, D); key: (B, H, S, D); returns (B, H, T, S)."""
    return at_least_fp32((query / math.sqrt(query.shape[3])) @ key.transpose(-2, -1))


def negative_half_distances(query: Tensor, key: Tensor) -> Tensor:
    """-|q - k|^2 / 2 of every pair, at least in fp32; query: (B, H, T, D); key: (B, H, S, D); returns (B, H, T, S).

    Autocast is switched off: in bf16 numbers near 20 would keep 8 bits, and an exponential follows.
    """
    if is_autocast(query):
        with torch.autocast(query.device.type, enabled=False):
            return negative_half_distances(query, key)
    query, key = with_norms(at_least_fp32(query), at_least_fp32(key))
    return query @ key.transpose(-2, -1)


def with_norms(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys, extended by channels with their norms, whose product is -|q - k|^2 / 2.

    Since -|q - k|^2 / 2 = q k - |q|^2 / 2 - |k|^2 / 2, it is the product of (q, -|q|^2 / 2, 1) and (k, 1, -|k|^2 / 2),
    and a fused kernel for q k computes it too. Each norm is the sum of two channels, of which the first has the 8 bits
    that bf16 keeps: in a single channel it would change a weight by 0.8 % at GPT-2's initial weights, in two by 1.5e-5.

    query: (B, H, T, D), key: (B, H, S, D), of one dtype. Returns (B, H, T, D + 4) and (B, H, S, D + 4).
    """
    of_query, of_key = _norm_channels(query), _norm_channels(key)
    query = torch.cat((query, of_query, torch.ones_like(of_query)), dim=-1)
    return query, torch.cat((key, torch.ones_like(of_key), of_key), dim=-1)


def _norm_channels(x: Tensor) -> Tensor:
    """-|x|^2 / 2 as a sum of two numbers, (B, H, T, 2)."""
    norm = at_least_fp32(x).square().sum(dim=-1, keepdim=True) / -2
    high = norm.bfloat16().to(norm.dtype)
    return torch.cat((high, norm - high), dim=-1).to(x.dtype)


def unfused_bytes(size: AttentionSize, *, matrices: int = 1, channel_bytes: int = 0) -> int:
    """Memory that `unfused_attention` saves for the backward pass; measured, and held by a test.

    matrices: T x S matrices in fp32 from scores to weights. channel_bytes: for each channel of queries and keys. Up to
    a block of queries the weights of every layer are saved; of more, those of a block of one layer exist at a time.
    """
    pair_bytes = size.value_bytes + WEIGHT_BYTES * (matrices + size.has_dropout)
    if size.context_length > BLOCK_QUERIES:
        return pair_bytes * size.pairs * BLOCK_QUERIES // size.context_length
    return channel_bytes * size.channels + size.layers * size.pairs * pair_bytes
