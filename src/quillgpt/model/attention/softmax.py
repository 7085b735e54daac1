"""Softmax attention as fast as this device has it: torch's fused kernel, or written out where that is faster."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from quillgpt.model.causal_mask import causal_mask
from quillgpt.model.written_out import BLOCK_QUERIES

LONGEST_WRITTEN_OUT = 1024


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over earlier positions only [Vaswani 2017, 3.2.1].

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    new, total = query.shape[2], key.shape[2]
    if new == total:
        if is_written_out(query.device.type, query.dtype, new) and not torch.compiler.is_exporting():
            return _in_blocks(query, key, value, dropout)
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    if new == 1 and not dropout and is_compiled_for_a_cpu(query):
        return _of_one_query(query, key, value)
    # is_causal would align the first query with the first key, but ours are the last positions; a single one sees all
    mask = None if new == 1 else causal_mask(new, total, query.device)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def is_written_out(device: str, dtype: torch.dtype, length: int) -> bool:
    """Whether the weights are written out: in bf16 on a CPU, where the fused kernel's products are not the fast ones.

    Measured to a context of 1,024 (docs/speed.md); beyond, the weights' memory would count.
    """
    return device == "cpu" and dtype == torch.bfloat16 and length <= LONGEST_WRITTEN_OUT


def is_compiled_for_a_cpu(x: Tensor) -> bool:
    """Whether a compiler makes loops of what is written here, and for a CPU."""
    return x.device.type == "cpu" and torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def _of_one_query(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One query sees all; (B, H, 1, D). For a compiler: two loops, over the keys and over the values.

    The fused kernel makes products of matrices with one row, which takes twice as long (docs/speed.md).
    """
    weights = ((key * query).sum(dim=-1) * query.shape[3] ** -0.5).softmax(dim=-1)  # (B, H, S)
    return (weights[..., None] * value).sum(dim=2, keepdim=True)


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """A block of queries at a time with the keys that it sees, so that few of the unseen pairs are computed."""
    ends = [min(start + BLOCK_QUERIES, query.shape[2]) for start in range(0, query.shape[2], BLOCK_QUERIES)]
    blocks = [
        _block(part, key[:, :, :end], value[:, :, :end], dropout)
        for part, end in zip(query.split(BLOCK_QUERIES, dim=2), ends, strict=True)
    ]
    return torch.cat(blocks, dim=2) if len(blocks) > 1 else blocks[0]


def _block(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """The last of S positions; the mask and the scale are in the product, which saves two passes over (T, S)."""
    new, seen = query.shape[2], key.shape[2]
    unseen = query.new_full((new, seen), -math.inf).triu(diagonal=seen - new + 1)
    scores = torch.baddbmm(unseen, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=query.shape[3] ** -0.5)
    weights = F.dropout(scores.softmax(dim=-1), dropout)  # (B * H, T, S)
    return (weights @ value.flatten(0, 1)).unflatten(0, query.shape[:2])
