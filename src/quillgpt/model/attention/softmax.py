"""Softmax attention: torch's fused kernel, or unfused where that is faster."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from quillgpt.model.attention.entry import Attention, AttentionSize
from quillgpt.model.attention.unfused import BLOCK_QUERIES, causal_mask

MAX_UNFUSED_LENGTH = 1024  # as far as it was measured (docs/speed.md); beyond, the memory of the weights would count


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over earlier positions only [Vaswani 2017, 3.2.1].

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    new, total, device = query.shape[2], key.shape[2], query.device
    is_exporting = torch.compiler.is_exporting()
    if new == total:
        if uses_unfused(device.type, query.dtype, new) and not is_exporting:
            return _blockwise(query, key, value, dropout)
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    if new == 1 and not dropout and device.type == "cpu" and torch.compiler.is_compiling() and not is_exporting:
        return _single_query(query, key, value)
    # is_causal would align the first query with the first key, but ours are the last positions; a single one sees all
    mask = None if new == 1 else causal_mask(new, total, device)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def uses_unfused(device: str, dtype: torch.dtype, length: int) -> bool:
    """Whether weights are computed unfused: in bf16 on a CPU, where the fused kernel does not use bf16 instructions."""
    return device == "cpu" and dtype == torch.bfloat16 and length <= MAX_UNFUSED_LENGTH


def _single_query(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One query sees all; (B, H, 1, D). For a compiler: two loops, over the keys and over the values.

    The fused kernel multiplies matrices of one row, which takes twice as long (docs/speed.md).
    """
    weights = ((key * query).sum(dim=-1) * query.shape[3] ** -0.5).softmax(dim=-1)  # (B, H, S)
    return (weights[..., None] * value).sum(dim=2, keepdim=True)


def _blockwise(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """A block of queries at a time with the keys that it can attend to, so that few masked pairs are computed."""
    blocks = []
    for start, part in zip(range(0, query.shape[2], BLOCK_QUERIES), query.split(BLOCK_QUERIES, dim=2), strict=True):
        end = start + BLOCK_QUERIES
        blocks.append(_block(part, key[:, :, :end], value[:, :, :end], dropout))
    return torch.cat(blocks, dim=2) if len(blocks) > 1 else blocks[0]


def _block(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """The last T of S positions; mask and scale are part of the product, which saves two passes over (T, S)."""
    new, total = query.shape[2], key.shape[2]
    mask = query.new_full((new, total), -math.inf).triu(diagonal=total - new + 1)
    scores = torch.baddbmm(mask, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=query.shape[3] ** -0.5)
    weights = F.dropout(scores.softmax(dim=-1), dropout)  # (B * H, T, S)
    return (weights @ value.flatten(0, 1)).unflatten(0, query.shape[:2])


def _saved_bytes(size: AttentionSize) -> int:
    """Weights where it is unfused; dropout's masks where a CPU kernel has no dropout."""
    if uses_unfused(size.device, torch.bfloat16 if size.value_bytes == 2 else torch.float32, size.context_length):
        blocks = -(-size.context_length // BLOCK_QUERIES)
        numbers = size.layers * size.pairs * (3 if size.has_dropout else 1)
        return size.value_bytes * numbers * (blocks + 1) // (2 * blocks)
    return 12 * size.layers * size.pairs if size.has_dropout and size.device == "cpu" else 0


def _kernel(device: str, dtype: torch.dtype, length: int) -> str:
    if not uses_unfused(device, dtype, length):
        return "torch's fused kernel"
    return f"unfused: faster than the fused kernel in bf16 on a CPU, up to {MAX_UNFUSED_LENGTH:,} tokens"


SOFTMAX = Attention(
    function=softmax_attention, saved_bytes=_saved_bytes, kernel=_kernel, is_normalized=True, is_softmax=True
)
