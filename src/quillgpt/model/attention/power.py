"""Power-softmax: an even power in place of the exponential, so that only the division is not a polynomial."""

from functools import partial

from torch import Tensor

from quillgpt.model.attention.entry import Attention
from quillgpt.model.attention.unfused import scaled_scores, unfused_attention, unfused_bytes

POWER = 4  # that of the paper's largest model according to a public slide deck; the paper was not available
EPSILON = 1e-3  # the deck's example: with it the division is Lipschitz, easier to approximate by a polynomial
DELTA = 1e-6  # our choice


def power_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """Sum of y^p / (epsilon + sum of y^p) v, with y = x / (max |x| + delta) and x = q k / sqrt(D) [Zimerman 2024].

    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    return unfused_attention(_weights, query, key, value, dropout=dropout)


def _weights(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    scores = scaled_scores(query, key).masked_fill(~visible, 0.0)  # 0 to the power is 0: no weight, nothing in the sum
    scale = scores.abs().amax(dim=-1, keepdim=True) + DELTA  # powers of numbers to 1 do not overflow
    powers = (scores / scale) ** POWER
    return powers / (powers.sum(dim=-1, keepdim=True) + EPSILON)


POWER_SOFTMAX = Attention(function=power_attention, saved_bytes=partial(unfused_bytes, matrices=4))
