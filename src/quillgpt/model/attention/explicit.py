"""Softmax attention written out, for reading and for looking at the weights; slower, and its memory grows as T * S."""

import math

from torch import Tensor
from torch.nn import functional as F

from quillgpt.model.causal_mask import causal_mask


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """The same as `softmax_attention`, step by step [Vaswani 2017, 3.2.1].

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    new, total, head_size = query.shape[2], key.shape[2], query.shape[3]
    scores = (query / math.sqrt(head_size)) @ key.transpose(
        -2, -1
    )  # (B, H, T, S); dividing before is T x D work, not T x S
    scores = scores.masked_fill(~causal_mask(new, total, query.device), -math.inf)
    weights = scores.softmax(dim=-1)
    return F.dropout(weights, dropout) @ value  # (B, H, T, D)
