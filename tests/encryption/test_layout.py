"""Matrices in slots: packed and found again, and the product by diagonals against the plain one."""

import numpy as np
import pytest

from quillgpt.encryption.layout import Layout, Numbers

SHAPES = [(8, 8, 24), (5, 6, 40), (8, 4, 300), (1, 1, 1), (3, 16, 16), (16, 32, 70)]


def random_numbers(*shape: int) -> Numbers:
    return np.random.default_rng(3).normal(size=shape)


@pytest.mark.parametrize(("positions", "head_size", "width"), SHAPES)
def test_a_matrix_comes_back(positions: int, head_size: int, width: int) -> None:
    layout = Layout(positions=positions, head_size=head_size, slots=512)
    x = random_numbers(positions, width)
    y = random_numbers(positions, head_size)

    rows = np.concatenate([part.reshape(layout.rows, layout.lanes) for part in layout.packed(x)])
    np.testing.assert_array_equal(rows[:width, :positions].T, x)
    assert not rows[width:].any()
    assert not rows[:, positions:].any()
    np.testing.assert_array_equal(layout.unpacked(layout.repeated(y)), y)


@pytest.mark.parametrize(("positions", "head_size", "width"), SHAPES)
def test_diagonals_times_rotations_are_the_product(positions: int, head_size: int, width: int) -> None:
    layout = Layout(positions=positions, head_size=head_size, slots=512)
    weight, x = random_numbers(positions, head_size, width), random_numbers(positions, width)

    total = np.zeros(layout.slots)
    for part, diagonals in zip(layout.packed(x), layout.diagonals(weight), strict=True):
        for shift, diagonal in enumerate(diagonals):
            total += diagonal * np.roll(part, -shift * layout.lanes)
    folded = sum(np.roll(total, -start * layout.lanes) for start in range(0, layout.rows, layout.period))

    np.testing.assert_allclose(layout.unpacked(folded), np.einsum("tdc,tc->td", weight, x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(folded, layout.repeated(layout.unpacked(folded)), atol=1e-12)


def test_a_distance_back_is_visible_only_where_a_position_is() -> None:
    layout = Layout(positions=3, head_size=2, slots=16)

    factor = np.array([5.0, 6.0, 7.0])
    assert layout.visible(0, factor)[:4].tolist() == [5, 6, 7, 0]
    assert layout.visible(2, factor)[:4].tolist() == [0, 0, 7, 0]
    assert layout.visible(2, factor).reshape(4, 4).tolist() == [[0, 0, 7, 0]] * 4
