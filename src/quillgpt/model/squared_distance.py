"""The squared distance between each query and each key."""

from torch import Tensor

from quillgpt.model.written_out import in_full


def negative_squared_distance(query: Tensor, key: Tensor) -> Tensor:
    """-|q - k|^2 of every pair, at least in fp32; query: (B, H, T, D); key: (B, H, S, D); -> (B, H, T, S)."""
    query_norm = in_full(query).square().sum(dim=-1).unsqueeze(-1)  # (B, H, T, 1)
    key_norm = in_full(key).square().sum(dim=-1).unsqueeze(-2)  # (B, H, 1, S)
    return 2 * in_full(query @ key.transpose(-2, -1)) - query_norm - key_norm
