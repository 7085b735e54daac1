"""The squared distance between queries and keys as one product, by extra channels that carry their norms.

Since -|q - k|^2 / 2 = q k - |q|^2 / 2 - |k|^2 / 2, it is the product of (q, -|q|^2 / 2, 1) and (k, 1, -|k|^2 / 2), and
a fused kernel for q k computes it too. Each norm is the sum of two channels, of which the first has the 8 digits that
bf16 keeps: in one channel alone it would change a weight by 0.8 % at GPT-2's initial weights, in two by 1.5e-5.
"""

import torch
from torch import Tensor

from quillgpt.model.written_out import in_full, is_autocast

NORM_CHANNELS = 4  # two for the query's norm, two for the key's


def with_norms(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys whose product is -|q - k|^2 / 2.

    query: (B, H, T, D), key: (B, H, S, D), of one dtype. Returns (B, H, T, D + 4) and (B, H, S, D + 4).
    """
    of_query, of_key = _norm_channels(query), _norm_channels(key)
    query = torch.cat((query, of_query, torch.ones_like(of_query)), dim=-1)
    return query, torch.cat((key, torch.ones_like(of_key), of_key), dim=-1)


def negative_half_distances(query: Tensor, key: Tensor) -> Tensor:
    """-|q - k|^2 / 2 of every pair, in fp32 or above; query: (B, H, T, D); key: (B, H, S, D); -> (B, H, T, S).

    Not in bf16 under autocast either: the product would keep 8 digits of numbers near 20, which an exponential follows.
    """
    if is_autocast(query):
        with torch.autocast(query.device.type, enabled=False):
            return negative_half_distances(query, key)
    query, key = with_norms(in_full(query), in_full(key))
    return query @ key.transpose(-2, -1)


def _norm_channels(x: Tensor) -> Tensor:
    """-|x|^2 / 2 as a sum of two numbers, (B, H, T, 2)."""
    norm = in_full(x).square().sum(dim=-1, keepdim=True) / -2
    high = norm.bfloat16().to(norm.dtype)
    return torch.cat((high, norm - high), dim=-1).to(x.dtype)
