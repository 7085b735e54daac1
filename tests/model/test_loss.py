"""The fused loss, whose backward pass is computed with the forward pass, against cross-entropy by torch."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.model.loss import IGNORED_TARGET, linear_cross_entropy

N, C, V, ROWS = 23, 6, 37, 64


def given(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (N, C), a padded head (ROWS, C), and targets of which some are ignored."""
    generator = torch.Generator().manual_seed(3)
    hidden = 3 * torch.randn(N, C, generator=generator, dtype=torch.float64)
    weight = torch.randn(ROWS, C, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (N,), generator=generator)
    targets[::5] = IGNORED_TARGET
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def by_torch(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float = 0.0) -> Tensor:
    logits = F.linear(hidden, weight)[:, :V]
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    return F.cross_entropy(logits, targets, ignore_index=IGNORED_TARGET, reduction="sum")


def test_loss_and_gradients_are_those_of_cross_entropy() -> None:
    for softcap, chunk_tokens in itertools.product((0.0, 2.0, 15.0), (N, 100, 7, 1)):
        ours, theirs = given(), given()
        loss = linear_cross_entropy(*ours, vocab_size=V, softcap=softcap, chunk_tokens=chunk_tokens)
        (3 * loss).backward()
        expected = by_torch(*theirs, softcap)
        (3 * expected).backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12), (softcap, chunk_tokens)
        for got, reference in zip(ours[:2], theirs[:2], strict=True):
            torch.testing.assert_close(got.grad, reference.grad, rtol=1e-10, atol=1e-12)
        assert not ours[1].grad[V:].any()


def test_logits_whose_exponential_overflows_keep_their_loss() -> None:
    hidden, weight, targets = torch.full((2, 1), 1e4), torch.tensor([[1.0], [0.0]]), torch.tensor([1, 0])
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, targets, vocab_size=2, softcap=0.0, chunk_tokens=2)
    loss.backward()
    assert loss.item() == 1e4
    assert hidden.grad.flatten().tolist() == [1.0, 0.0]


def test_with_autocast_products_are_in_bf16_and_the_weights_gradient_is_not() -> None:
    exact = given(torch.float32)
    by_torch(*exact).backward()
    for chunk_tokens in (N, 4):
        hidden, weight, targets = given(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = linear_cross_entropy(hidden, weight, targets, vocab_size=V, softcap=0.0, chunk_tokens=chunk_tokens)
        loss.backward()
        assert loss.dtype == weight.grad.dtype == hidden.grad.dtype == torch.float32
        for got, expected in ((hidden.grad, exact[0].grad), (weight.grad, exact[1].grad)):
            assert 0 < (got - expected).norm() < 0.02 * expected.norm()


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, targets = given()
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, targets, vocab_size=V, softcap=0.0, chunk_tokens=5).backward()
    expected, _, _ = given()
    by_torch(expected, weight, targets).backward()
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad, expected.grad, rtol=1e-10, atol=1e-12)
