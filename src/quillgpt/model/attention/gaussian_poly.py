"""A polynomial in place of the Gaussian: additions and multiplications only, as encrypted numbers need it."""

import math
from functools import partial

from torch import Tensor

from quillgpt.errors import require
from quillgpt.model.attention.entry import Attention
from quillgpt.model.attention.unfused import DISTANCE_BYTES, negative_half_distances, unfused_attention, unfused_bytes

PREFIX = "gaussian-poly-"
MAX_DEGREE = 65_536  # above, 32 bits are too few: the power's relative error is near N / 2^24


def gaussian_poly_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float, degree: int) -> Tensor:
    """Sum of (1 - |q - k|^2 / (2 sqrt(D) N))^N v over earlier positions, not normalized [Rho 2025].

    It converges to exp(-|q - k|^2 / (2 sqrt(D))) as the degree N grows; N is even, so that no weight is negative.
    query: (B, H, T, D), the last T of S positions. key, value: (B, H, S, D). Returns (B, H, T, D).
    """
    return unfused_attention(partial(_weights, degree=degree), query, key, value, dropout=dropout)


def degree_of(name: str) -> int:
    """N of `gaussian-poly-N`; a `ConfigError` where it is not an even number."""
    digits = name.removeprefix(PREFIX)
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_DEGREE)) and digits[0] != "0"
    fits = is_number and int(digits) % 2 == 0 and int(digits) <= MAX_DEGREE
    require("attention", name, fits, f"{PREFIX}N with N even, 2 to {MAX_DEGREE:,}")
    return int(digits)


def _weights(query: Tensor, key: Tensor, visible: Tensor, *, degree: int) -> Tensor:
    base = 1 + negative_half_distances(query, key) / (math.sqrt(query.shape[3]) * degree)
    return _power(base.masked_fill(~visible, 0.0), degree)


def _power(x: Tensor, exponent: int) -> Tensor:
    """x^exponent by repeated squaring: x^10 = x^2 x^8, of x^2, x^4 = (x^2)^2, x^8 = (x^4)^2."""
    while exponent % 2 == 0:
        x, exponent = x * x, exponent // 2
    result = x
    while exponent := exponent // 2:
        x = x * x
        if exponent % 2:
            result = result * x
    return result


def polynomial_entry(degree: int) -> Attention:
    """The entry of the menu; for the backward pass each multiplication of the power saves a matrix."""
    matrices = degree.bit_length() - 2 + degree.bit_count()
    return Attention(
        function=partial(gaussian_poly_attention, degree=degree),
        saved_bytes=partial(unfused_bytes, matrices=matrices, channel_bytes=DISTANCE_BYTES),
        monitored="distance",
        degree=degree,
    )
