"""Softmax attention by torch's fused kernels: what GPT-2 computes, without ever holding the (T, S) weights."""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from quillgpt.model.causal_mask import causal_mask


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over earlier positions only [Vaswani 2017, 3.2.1].

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    new, total = query.shape[2], key.shape[2]
    if new == total:
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    # is_causal would align the first query with the first key, but ours are the last positions; a single one sees all
    mask = None if new == 1 else causal_mask(new, total, query.device)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
