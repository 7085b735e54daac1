"""Softmax attention step by step, to be read, and to look at the weights; slower, and its memory grows as T * S."""

import math

from torch import Tensor
from torch.nn import functional as F

from quillgpt.model.attention.entry import Attention
from quillgpt.model.attention.unfused import causal_mask


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """The same as `softmax_attention` [Vaswani 2017, 3.2.1].

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    new, total, head_size = query.shape[2], key.shape[2], query.shape[3]
    scores = (query / math.sqrt(head_size)) @ key.transpose(-2, -1)  # (B, H, T, S); fewer divisions than of the scores
    scores = scores.masked_fill(~causal_mask(new, total, query.device), -math.inf)
    weights = scores.softmax(dim=-1)
    return F.dropout(weights, dropout) @ value  # (B, H, T, D)


EXPLICIT = Attention(function=explicit_attention, is_normalized=True, is_softmax=True)
