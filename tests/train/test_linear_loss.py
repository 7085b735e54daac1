"""The loss that goes forward and backward at once, against cross-entropy by torch."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.data.held_out import IGNORED_TARGET
from quillgpt.train.linear_loss import linear_cross_entropy

N, C, V, ROWS = 23, 6, 37, 64


def given(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = 3 * torch.randn(N, C, generator=generator, dtype=torch.float64)
    weight = torch.randn(ROWS, C, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (N,), generator=generator)
    targets[::5] = IGNORED_TARGET
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    logits = F.linear(hidden, weight)[:, :V]
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    return F.cross_entropy(logits, targets, ignore_index=IGNORED_TARGET, reduction="sum")


@pytest.mark.parametrize(("softcap", "chunk_tokens"), [*itertools.product([0.0, 2.0, 15.0], [N, 100, 7, 1])])
def test_loss_and_gradients_are_cross_entropys(softcap: float, chunk_tokens: int) -> None:
    hidden, weight, targets = given()
    loss = linear_cross_entropy(hidden, weight, targets, vocab_size=V, softcap=softcap, chunk_tokens=chunk_tokens)
    (3 * loss).backward()
    own_hidden, own_weight, _ = given()
    wanted = plain(own_hidden, own_weight, targets, softcap)
    (3 * wanted).backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    torch.testing.assert_close(hidden.grad, own_hidden.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(weight.grad, own_weight.grad, rtol=1e-10, atol=1e-12)
    assert not weight.grad[V:].any()


def test_logits_beyond_what_a_number_holds_as_an_exponential_keep_their_loss() -> None:
    hidden, weight, targets = torch.full((2, 1), 1e4), torch.tensor([[1.0], [0.0]]), torch.tensor([1, 0])
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, targets, vocab_size=2, softcap=0.0, chunk_tokens=2)
    loss.backward()
    assert loss.item() == 1e4
    assert hidden.grad.flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("chunk_tokens", [N, 4])
def test_with_autocast_products_are_in_bf16_and_the_weights_gradient_is_not(chunk_tokens: int) -> None:
    hidden, weight, targets = given(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, vocab_size=V, softcap=0.0, chunk_tokens=chunk_tokens)
    loss.backward()
    exact = given(torch.float32)
    plain(*exact, 0.0).backward()
    assert loss.dtype == weight.grad.dtype == hidden.grad.dtype == torch.float32
    for got, wanted in ((hidden.grad, exact[0].grad), (weight.grad, exact[1].grad)):
        assert 0 < (got - wanted).norm() < 0.02 * wanted.norm()


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, targets = given()
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, targets, vocab_size=V, softcap=0.0, chunk_tokens=5).backward()
    own_hidden, _, _ = given()
    plain(own_hidden, weight, targets, 0.0).backward()
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad, own_hidden.grad, rtol=1e-10, atol=1e-12)
