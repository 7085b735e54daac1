"""Attentions alone: what they compute, that they see nothing later, and that the last queries need no earlier ones."""

import math

import pytest
import torch
from torch import Tensor

from quillgpt.model.attention import ATTENTION

every_attention = pytest.mark.parametrize("attend", ATTENTION.values(), ids=ATTENTION)
every_softmax = pytest.mark.parametrize("name", ["softmax", "explicit"])


def random_heads(length: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (2, 3, length, 4) in float64, with gradients."""
    generator = torch.Generator().manual_seed(4)
    query, key, value = torch.randn(3, 2, 3, length, 4, dtype=torch.float64, generator=generator)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def one_position_at_a_time(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention as a sentence: each position averages the values up to its own."""
    mixed = []
    for i in range(query.shape[2]):
        scores = torch.einsum("bhd,bhsd->bhs", query[:, :, i], key[:, :, : i + 1]) / math.sqrt(query.shape[3])
        shares = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
        mixed.append(torch.einsum("bhs,bhsd->bhd", shares, value[:, :, : i + 1]))
    return torch.stack(mixed, dim=2)


@every_softmax
def test_softmax_attention_averages_the_values_up_to_each_position(name: str) -> None:
    query, key, value = random_heads()

    mixed = ATTENTION[name](query, key, value, dropout=0.0)

    torch.testing.assert_close(mixed, one_position_at_a_time(query, key, value), rtol=1e-10, atol=1e-12)


@every_softmax
def test_softmax_attention_has_the_gradients_of_its_formula(name: str) -> None:
    heads, same_heads = random_heads(), random_heads()
    seen_through = torch.randn(2, 3, 7, 4, dtype=torch.float64)

    (ATTENTION[name](*heads, dropout=0.0) * seen_through).sum().backward()
    (one_position_at_a_time(*same_heads) * seen_through).sum().backward()

    for ours, expected in zip(heads, same_heads, strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-10, atol=1e-12)


@every_attention
def test_nothing_flows_from_later_positions(attend) -> None:
    heads = random_heads()

    attend(*heads, dropout=0.0)[:, :, 3].sum().backward()

    _, key, value = heads
    assert (key.grad[:, :, 4:] == 0).all()
    assert (value.grad[:, :, 4:] == 0).all()
    assert (value.grad[:, :, :4] != 0).all()


@every_attention
@pytest.mark.parametrize("new", [1, 2, 6, 7])
def test_the_last_queries_give_the_last_rows_of_the_whole(attend, new: int) -> None:
    query, key, value = random_heads()

    mixed = attend(query[:, :, -new:], key, value, dropout=0.0)

    torch.testing.assert_close(mixed, attend(query, key, value, dropout=0.0)[:, :, -new:], rtol=1e-10, atol=1e-12)


@every_attention
def test_dropout_keeps_the_mean(attend) -> None:
    torch.manual_seed(5)
    repeats = 20_000
    query, key, value = (part[:1, :1].detach() for part in random_heads(3))
    many = (part.expand(repeats, -1, -1, -1) for part in (query, key, value))

    dropped = attend(*many, dropout=0.25)

    standard_error = dropped.std(dim=0) / math.sqrt(repeats)
    assert (dropped.std(dim=0) > 0.01).all()
    assert ((dropped.mean(dim=0) - attend(query, key, value, dropout=0.0)[0]).abs() < 5 * standard_error).all()
