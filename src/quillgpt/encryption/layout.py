"""How a (T, C) matrix lies in the slots of ciphertexts, and the masks and diagonals that fit it.

The slots are R rows of `lanes` numbers: a lane is a position of the text, a row a channel. So one rotation moves all
channels to the next position, and a rotation by `lanes` moves all positions to the next channel:

    lanes = 4, T = 3        slot   0   1   2   3 | 4   5   6   7 | 8 ...
                                  x00 x10 x20  0 |x01 x11 x21  0 |x02 ...      x_tc: position t, channel c

Rows and lanes are powers of two, and what has D rows is repeated every D' rows (D' the power of two from D on), so that
D' rotations around the end come back to the beginning and a sum over rows lands in every row.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape of the slots for one head: T positions, D channels of the head, in so many slots."""

    positions: int
    head_size: int
    slots: int

    @property
    def lanes(self) -> int:
        """Positions in a row: T, rounded up to a power of two."""
        return _power_of_two_from(self.positions)

    @property
    def rows(self) -> int:
        """Channels that one ciphertext holds."""
        return self.slots // self.lanes

    @property
    def period(self) -> int:
        """D': D, rounded up to a power of two; queries, keys and values are repeated every D' rows."""
        return _power_of_two_from(self.head_size)

    @property
    def baby_steps(self) -> int:
        """A matrix product rotates its input so often, and its sums D' / baby_steps times."""
        return 1 << math.ceil(math.log2(self.period) / 2)

    @property
    def rotations(self) -> set[int]:
        """All rotations of the circuit: one lane back, and powers of two of rows."""
        return {-1} | {self.lanes << power for power in range(int(math.log2(self.rows)))}

    def parts(self, width: int) -> int:
        """Ciphertexts for so many channels."""
        return -(-width // self.rows)

    def packed(self, x: Numbers) -> list[Numbers]:
        """A matrix (T, C) in the slots of as many ciphertexts as it needs, zero where nothing is."""
        full = np.zeros((self.parts(x.shape[1]) * self.rows, self.lanes))
        full[: x.shape[1], : self.positions] = x.T
        return list(full.reshape(-1, self.slots))

    def repeated(self, x: Numbers) -> Numbers:
        """A matrix (T, D) in the slots, again and again every D' rows."""
        one = np.zeros((self.period, self.lanes))
        one[: self.head_size, : self.positions] = x.T
        return np.tile(one, (self.rows // self.period, 1)).ravel()

    def unpacked(self, slots: Numbers) -> Numbers:
        """The matrix (T, D) that lies in the first D rows."""
        return slots.reshape(self.rows, self.lanes)[: self.head_size, : self.positions].T

    def visible(self, back: int, factor: Numbers) -> Numbers:
        """The factor of each position (T,) where a position so many back exists, else 0; the causal mask of a lane."""
        lane = np.zeros(self.lanes)
        lane[back : self.positions] = factor[back:]
        return np.tile(lane, self.rows)

    def diagonals(self, weight: Numbers) -> Numbers:
        """The generalised diagonals of each position's matrix, weight (T, D, C): (parts, D', slots).

        Row r of diagonal s has weight[d, c] with d = r mod D' and c = r + s, counted around the rows of its part
        [Halevi 2014, 4.3]. The sum over s of diagonal s times the input rotated by s rows, then folded every D' rows,
        is the product.
        """
        positions, head_size, width = weight.shape
        parts = self.parts(width)
        full = np.zeros((self.period, parts * self.rows, self.lanes))
        full[:head_size, :width, :positions] = weight.transpose(1, 2, 0)
        by_part = full.reshape(self.period, parts, self.rows, self.lanes)
        row = np.arange(self.rows)
        shifted = [
            by_part[row % self.period, :, (row + shift) % self.rows].transpose(1, 0, 2) for shift in range(self.period)
        ]
        return np.stack(shifted, axis=1).reshape(parts, self.period, self.slots)


def _power_of_two_from(count: int) -> int:
    return 1 << (count - 1).bit_length()
