"""One attention head on ciphertexts: what the server does, in additions, multiplications and rotations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quillgpt.encryption.ckks import Encrypted, Server
from quillgpt.encryption.head import Kernel, Linear
from quillgpt.encryption.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Queries, keys and values of a head, each in the slots of one ciphertext."""

    query: Encrypted
    key: Encrypted
    value: Encrypted


def project(server: Server, layout: Layout, x: Sequence[Encrypted], maps: Sequence[Linear]) -> list[Encrypted]:
    """weight x + bias for several maps of one input, with a plaintext matrix for each position. Depth 1.

    Diagonals in baby steps and giant steps [Halevi 2018], of a wide matrix only D' of them [Juvekar 2018]: about
    2 sqrt(D') rotations instead of C.
    """
    baby = [_rotations(server, part, layout.baby_steps, layout.lanes) for part in x]
    return [_product(server, layout, baby, linear) for linear in maps]


def attend(server: Server, layout: Layout, inputs: Inputs, kernel: Kernel) -> Encrypted:
    """Mix the values of a head by a polynomial kernel, causally: the sum over j <= i of weight(q_i, k_j) v_j.

    Distance by distance: keys and values move one lane on, and every position meets the one so many before it.
    """
    key, value = inputs.key, inputs.value
    total = None
    for back in range(layout.positions):
        if back:
            key, value = server.rotate(key, -1), server.rotate(value, -1)
        weight = _weights(server, layout, inputs.query, key, kernel, back)
        term = server.multiply(weight, value)
        total = term if total is None else server.add(total, term)
    assert total is not None
    return total


def attend_depth(kernel: Kernel) -> int:
    """Levels that `attend` needs: the pair's product, scale and mask, the power, and the value."""
    return 1 + 1 + math.ceil(math.log2(kernel.power)) + 1


def _weights(server: Server, layout: Layout, query: Encrypted, key: Encrypted, kernel: Kernel, back: int) -> Encrypted:
    """weight(q_i, k_{i - back}) in every row of lane i, and 0 where i - back < 0."""
    if kernel.is_distance:
        difference = server.subtract(query, key)
        pairs = server.multiply(difference, difference)
    else:
        pairs = server.multiply(query, key)
    rows = 1
    while rows < layout.period:
        pairs = server.add(pairs, server.rotate(pairs, rows * layout.lanes))
        rows *= 2
    scaled = server.rescaled(server.multiply_plain(pairs, layout.visible(back, kernel.scale)))
    if kernel.constant:
        scaled = server.add_plain(scaled, layout.visible(back, np.full(layout.positions, kernel.constant)))
    return _power(server, scaled, kernel.power)


def _power(server: Server, x: Encrypted, exponent: int) -> Encrypted:
    """x^exponent in ceil(log2(exponent)) levels: by squaring, the odd rests multiplied as soon as they are there."""
    result = None
    while True:
        if exponent % 2:
            result = x if result is None else server.multiply(result, x)
        exponent //= 2
        if not exponent:
            assert result is not None
            return result
        x = server.multiply(x, x)


def _product(server: Server, layout: Layout, baby: Sequence[Sequence[Encrypted]], linear: Linear) -> Encrypted:
    diagonals = layout.diagonals(linear.weight)
    step = layout.baby_steps
    total = None
    for giant in reversed(range(0, layout.period, step)):  # Horner: one rotation key for all giant steps
        if total is not None:
            total = server.rotate(total, step * layout.lanes)
        for part, rotated in enumerate(baby):
            for shift in range(min(step, layout.period)):
                moved = np.roll(
                    diagonals[part, giant + shift], giant * layout.lanes
                )  # before the rotations that follow
                if moved.any():  # SEAL refuses what would be a known zero
                    term = server.multiply_plain(rotated[shift], moved)
                    total = term if total is None else server.add(total, term)
    if total is None:
        raise ValueError("the matrix is zero")
    total = server.rescaled(total)
    rows = layout.period
    while rows < layout.rows:
        total = server.add(total, server.rotate(total, rows * layout.lanes))
        rows *= 2
    return server.add_plain(total, layout.repeated(linear.bias))


def _rotations(server: Server, x: Encrypted, count: int, steps: int) -> list[Encrypted]:
    rotated = [x]
    while len(rotated) < count:
        rotated.append(server.rotate(rotated[-1], steps))
    return rotated
