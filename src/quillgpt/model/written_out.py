"""Mixing with weights written out: for an attention that no fused kernel computes."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quillgpt.model.causal_mask import causal_mask

BLOCK_QUERIES = 256


class Weigh(Protocol):
    """How much of each value every query takes."""

    def __call__(self, query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
        """query: (B, H, T, D); key: (B, H, S, D); visible: (T, S), true or false. Returns (B, H, T, S), 0 elsewhere."""
        ...


def mix(weigh: Weigh, query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """Sum the values by the weights; query: (B, H, T, D), key and value: (B, H, S, D); -> (B, H, T, D).

    More than a block of queries are taken block by block, each with the keys that it sees, and the weights of a block
    are computed anew in the backward pass: memory does not grow with T x S, and half of the pairs are never computed.
    """
    new, total = query.shape[2], key.shape[2]
    if torch.compiler.is_exporting() or new <= BLOCK_QUERIES:  # a comparison would bind the graph
        return mix_at_once(weigh, query, key, value, dropout)
    blocks = []
    for start in range(0, new, BLOCK_QUERIES):
        end = min(start + BLOCK_QUERIES, new)
        seen = total - new + end
        heads = query[:, :, start:end], key[:, :, :seen], value[:, :, :seen]
        blocks.append(
            checkpoint(mix_at_once, weigh, *heads, dropout, use_reentrant=False, preserve_rng_state=dropout > 0)
        )
    return torch.cat(blocks, dim=2)


def mix_at_once(weigh: Weigh, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """The same with all weights in one matrix, (B, H, T, S), which is kept for the backward pass."""
    visible = causal_mask(query.shape[2], key.shape[2], query.device)
    weights = F.dropout(weigh(query, key, visible), dropout)
    return weights.to(value.dtype) @ value  # (B, H, T, D)


def in_full(scores: Tensor) -> Tensor:
    """At least 32 bits, for what is done with scores; autocast multiplies in 16."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def product_dtype(x: Tensor) -> torch.dtype:
    """In what a product of x is computed here: its own dtype, unless autocast has another."""
    is_cast = is_autocast(x) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if is_cast else x.dtype


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on where x is; there are devices that do not know it, such as meta."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
