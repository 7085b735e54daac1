"""Muon against torch's own, matrix by matrix; its other half against torch's AdamW."""

import copy

import pytest
import torch
from torch import nn

from quillgpt.config import ModelConfig, OptimConfig
from quillgpt.model.gpt import GPT
from quillgpt.optim import build_optimizer, set_rates
from quillgpt.optim.muon import orthogonalized
from quillgpt.optim.schedules import momentum

SETTINGS = OptimConfig(
    optimizer="muon",
    lr=0.02,
    min_lr=0.0,
    embedding_lr=0.3,
    head_lr=0.004,
    scalar_lr=0.01,
    weight_decay=0.1,
    beta1=0.8,
    eps=1e-10,
)
SHAPE = ModelConfig(
    n_layer=2,
    n_head=2,
    n_embd=32,
    context_length=16,
    vocab_size=60,
    tied_head=False,
    residual="mixed",
    value_embeddings=True,
)


def with_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_block_matrices_take_the_steps_of_torchs_muon() -> None:
    torch.manual_seed(1)
    model = GPT(SHAPE)
    pieces = {  # torch's takes each matrix by itself: queries, keys and values are three
        f"{name}.{index}": nn.Parameter(part.detach().clone())
        for name, parameter in model.blocks.named_parameters()
        if parameter.ndim == 2
        for index, part in enumerate(parameter.chunk(3 if "qkv" in name else 1))
    }
    ours = build_optimizer(model, SETTINGS)
    theirs = torch.optim.Muon(pieces.values(), lr=0.02, weight_decay=0.1, momentum=0.95)
    for step in range(4):
        with_gradients(model, step)
        parameters = dict(model.blocks.named_parameters())
        for name, piece in pieces.items():
            whole, _, index = name.rpartition(".")
            gradient = parameters[whole].grad
            assert gradient is not None
            piece.grad = gradient.chunk(3 if "qkv" in name else 1)[int(index)].clone()
        ours.step()
        theirs.step()
    for name, piece in pieces.items():
        whole, _, index = name.rpartition(".")
        found = dict(model.blocks.named_parameters())[whole].chunk(3 if "qkv" in name else 1)[int(index)]
        torch.testing.assert_close(found, piece, rtol=1e-4, atol=1e-4)


def test_everything_else_takes_the_steps_of_torchs_adamw_at_its_own_rate() -> None:
    torch.manual_seed(1)
    model = GPT(SHAPE)
    rates = {"token_embedding": 0.3, "position_embedding": 0.3, "value_embeddings.tables": 0.3, "head": 0.004}
    other = copy.deepcopy(model)
    groups = [
        {"params": [parameter], "lr": next((rate for start, rate in rates.items() if name.startswith(start)), 0.01)}
        for name, parameter in other.named_parameters()
        if parameter.ndim == 1 or not name.startswith("blocks.")
    ]
    theirs = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0)
    ours = build_optimizer(model, SETTINGS)
    for step in range(3):
        with_gradients(model, step)
        with_gradients(other, step)
        set_rates(ours, lr=0.02, momentum=0.95)
        ours.step()
        theirs.step()
    for (name, found), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        if found.ndim == 1 or not name.startswith("blocks."):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        else:
            assert not torch.equal(found, expected)


def test_the_schedule_moves_every_rate_alike() -> None:
    optimizer = build_optimizer(GPT(SHAPE), SETTINGS)
    set_rates(optimizer, lr=0.01, momentum=0.9)  # half the peak
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.002, 0.005, 0.01, 0.15])
    assert {group["momentum"] for group in optimizer.param_groups if group["kind"] == "matrix"} == {0.9}


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 20)])
def test_singular_values_come_close_to_one(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    for spread in (1.0, 1e-3):
        matrices = torch.randn(shape, generator=generator) * spread
        values = torch.linalg.svdvals(orthogonalized(matrices))
        assert values.max() < 1.3
        assert values.median() > 0.6


def test_a_matrix_of_zeros_stays_where_it_is() -> None:
    assert torch.equal(orthogonalized(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_momentum_rises_on_a_straight_line() -> None:
    settings = OptimConfig(optimizer="muon", momentum=0.95, momentum_warmup_steps=100)
    assert [momentum(step, settings) for step in (0, 50, 100, 5000)] == pytest.approx([0.85, 0.90, 0.95, 0.95])
    assert momentum(0, OptimConfig(momentum=0.95)) == 0.95
    assert momentum(0, OptimConfig(momentum=0.5, momentum_warmup_steps=10)) == 0.5
