"""Power-softmax: an even power in place of the exponential, so that only a division is left that is no polynomial."""

import math

from torch import Tensor

from quillgpt.model.written_out import in_full, mix

POWER = 4  # as a public slide deck tells of the paper's largest model; the paper was not at hand
EPSILON = 1e-3  # the deck's example: with it the division is Lipschitz, easier to approximate by a polynomial
SMALLEST_SCALE = 1e-6  # the delta; the value is ours


def power_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """Sum of y^p / (epsilon + sum of y^p) v, with y = x / (max |x| + delta) and x = q k / sqrt(D) [Zimerman 2024].

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    return mix(_weights, query, key, value, dropout=dropout)


def _weights(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    scores = in_full((query / math.sqrt(query.shape[3])) @ key.transpose(-2, -1))  # (B, H, T, S)
    scores = scores.masked_fill(~visible, 0.0)  # 0 to the power is 0: no weight, nothing in the sum
    scale = scores.abs().amax(dim=-1, keepdim=True) + SMALLEST_SCALE  # powers of numbers to 1 do not overflow
    powers = (scores / scale) ** POWER
    return powers / (powers.sum(dim=-1, keepdim=True) + EPSILON)
