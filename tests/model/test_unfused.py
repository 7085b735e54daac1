"""Unfused attention, block of queries by block: the same result, gradients and dropout as at once."""

from itertools import product

import pytest
import torch
from torch import Tensor

from quillgpt.model.attention import ATTENTION, find_attention, unfused

UNFUSED = [name for name in ATTENTION if name.startswith(("gaussian-poly", "pointwise"))] + ["power"]


def heads(new: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.randn(3, 2, 3, total, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return query[:, :, -new:].clone().requires_grad_(), key.requires_grad_(), value.requires_grad_()


def result_and_gradients(name: str, dropout: float, *parts: Tensor) -> tuple[Tensor, ...]:
    out = find_attention(name).function(*parts, dropout=dropout)
    probe = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out, *torch.autograd.grad((out * probe).sum(), parts)


def test_blocks_give_the_result_and_gradients_of_all_at_once(
    monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    cases = [*product(UNFUSED, ((11, 11), (9, 11), (4, 11), (5, 5)))]
    at_once = [result_and_gradients(name, 0.0, *heads(*shape)) for name, shape in cases]
    monkeypatch.setattr(unfused, "BLOCK_QUERIES", 4)
    for (name, shape), expected in zip(cases, at_once, strict=True):
        with subtests.test(name, shape=shape):
            in_blocks = result_and_gradients(name, 0.0, *heads(*shape))
            torch.testing.assert_close(in_blocks, expected, rtol=1e-10, atol=1e-12)


def test_a_recomputed_block_drops_the_same_weights(monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests) -> None:
    monkeypatch.setattr(unfused, "BLOCK_QUERIES", 4)
    for name in (*UNFUSED, "gaussian", "gaussian-normalized"):
        with subtests.test(name):
            parts = heads(11, 11)
            out, *_, value_gradient = result_and_gradients(name, 0.4, *parts)
            # for given weights the result is linear in the values, and so equal to gradient times value
            probe = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
            torch.testing.assert_close((out * probe).sum(), (value_gradient * parts[2]).sum(), rtol=1e-10, atol=1e-10)


def test_a_block_sees_only_keys_up_to_its_last_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfused, "BLOCK_QUERIES", 4)
    shapes = []

    def weights_of(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
        shapes.append(tuple(visible.shape))
        return visible.expand(2, 3, -1, -1).to(query.dtype)

    query, key, value = (part.detach() for part in heads(9, 11))
    out = unfused.unfused_attention(weights_of, query, key, value, dropout=0.0)
    assert shapes == [(4, 6), (4, 10), (1, 11)]
    torch.testing.assert_close(out, value.cumsum(dim=2)[:, :, 2:])
