"""The Gaussian by additions and multiplications alone, as encrypted numbers need it."""

import math
from functools import partial

from torch import Tensor

from quillgpt.errors import require
from quillgpt.model.squared_distance import negative_half_distances
from quillgpt.model.written_out import mix

PREFIX = "gaussian-poly-"
LARGEST_POWER = 65_536  # above, 32 bits are too few: the power's relative error is near N / 2^24


def gaussian_poly_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float, power: int) -> Tensor:
    """Sum of (1 - |q - k|^2 / (2 sqrt(D) N))^N v over earlier positions, N = power even, not normalised [Rho 2025].

    It goes to exp(-|q - k|^2 / (2 sqrt(D))) as N grows; N even, because a weight is never negative then.
    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    return mix(partial(_polynomial, power=power), query, key, value, dropout=dropout)


def power_of(name: str) -> int:
    """N of `gaussian-poly-N`; a `ConfigError` where it is not an even number."""
    digits = name.removeprefix(PREFIX)
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= len(str(LARGEST_POWER)) and digits[0] != "0"
    fits = is_number and int(digits) % 2 == 0 and int(digits) <= LARGEST_POWER
    require("attention", name, fits, f"{PREFIX}N with N even, 2 to {LARGEST_POWER:,}")
    return int(digits)


def _polynomial(query: Tensor, key: Tensor, visible: Tensor, *, power: int) -> Tensor:
    base = 1 + negative_half_distances(query, key) / (math.sqrt(query.shape[3]) * power)
    return _raised(base.masked_fill(~visible, 0.0), power)


def _raised(x: Tensor, power: int) -> Tensor:
    """x^power by squaring: x^10 is x^2 x^8, of x^2, x^4 = (x^2)^2, x^8 = (x^4)^2."""
    while power % 2 == 0:
        x, power = x * x, power // 2
    result = x
    while power := power // 2:
        x = x * x
        if power % 2:
            result = result * x
    return result
