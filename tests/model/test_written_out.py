"""Weights written out, block of queries by block: the same result, gradients and dropout as in one piece."""

import pytest
import torch
from torch import Tensor

from quillgpt.model import written_out
from quillgpt.model.attention import ATTENTION, find_attention

written_attention = pytest.mark.parametrize(
    "name", [name for name in ATTENTION if name.startswith(("gaussian-poly", "pointwise"))] + ["power"]
)
every_attention = pytest.mark.parametrize("name", [name for name in ATTENTION if name not in ("softmax", "explicit")])


def heads(new: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.randn(3, 2, 3, total, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return query[:, :, -new:].clone().requires_grad_(), key.requires_grad_(), value.requires_grad_()


def gradients(name: str, dropout: float, *parts: Tensor) -> tuple[Tensor, list[Tensor]]:
    mixed = find_attention(name)(*parts, dropout=dropout)
    seen_through = torch.linspace(-1, 1, mixed.numel(), dtype=mixed.dtype).view_as(mixed)
    return mixed, list(torch.autograd.grad((mixed * seen_through).sum(), parts))


@written_attention
@pytest.mark.parametrize(("new", "total"), [(11, 11), (9, 11), (4, 11), (5, 5)])
def test_blocks_of_queries_are_the_whole(monkeypatch: pytest.MonkeyPatch, name: str, new: int, total: int) -> None:
    at_once, at_once_gradients = gradients(name, 0.0, *heads(new, total))
    monkeypatch.setattr(written_out, "BLOCK_QUERIES", 4)

    in_blocks, in_blocks_gradients = gradients(name, 0.0, *heads(new, total))

    torch.testing.assert_close(in_blocks, at_once, rtol=1e-10, atol=1e-12)
    for ours, expected in zip(in_blocks_gradients, at_once_gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@every_attention
def test_a_block_computed_anew_drops_the_same_weights(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(written_out, "BLOCK_QUERIES", 4)
    parts = heads(11, 11)

    mixed, (_, _, of_value) = gradients(name, 0.4, *parts)

    # with the weights that were drawn, the result is linear in the values, and so equal to gradient times value
    seen_through = torch.linspace(-1, 1, mixed.numel(), dtype=mixed.dtype).view_as(mixed)
    torch.testing.assert_close((mixed * seen_through).sum(), (of_value * parts[2]).sum(), rtol=1e-10, atol=1e-10)


def test_a_block_sees_only_keys_up_to_its_last_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_out, "BLOCK_QUERIES", 4)
    shapes = []

    def weigh(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
        shapes.append(tuple(visible.shape))
        return visible.expand(2, 3, -1, -1).to(query.dtype)

    query, key, value = heads(9, 11)
    mixed = written_out.mix(weigh, query.detach(), key.detach(), value.detach(), dropout=0.0)

    assert shapes == [(4, 6), (4, 10), (1, 11)]
    torch.testing.assert_close(mixed, value.detach().cumsum(dim=2)[:, :, 2:])
