"""Mixing with weights written out: for an attention that no fused kernel computes."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.model.causal_mask import causal_mask


class Weigh(Protocol):
    """How much of each value every query takes."""

    def __call__(self, query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
        """query: (B, H, T, D); key: (B, H, S, D); visible: (T, S), true or false. Returns (B, H, T, S), 0 elsewhere."""
        ...


def mix(weigh: Weigh, query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """Sum the values by the weights; query: (B, H, T, D), key and value: (B, H, S, D); -> (B, H, T, D)."""
    visible = causal_mask(query.shape[2], key.shape[2], query.device)
    weights = F.dropout(weigh(query, key, visible), dropout)
    return weights.to(value.dtype) @ value  # (B, H, T, D)


def in_full(scores: Tensor) -> Tensor:
    """At least 32 bits, for what is done with scores; autocast multiplies in 16."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
