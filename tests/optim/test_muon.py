"""Muon against torch's own, matrix by matrix; its AdamW against torch's."""

import copy

import pytest
import torch
from torch import Tensor, nn

from quillgpt.config import ModelConfig, OptimConfig
from quillgpt.model.gpt import GPT
from quillgpt.optim import build_optimizer, set_rates
from quillgpt.optim.muon import orthogonalize
from quillgpt.optim.schedules import momentum

RATES = {"lr": 0.02, "embedding_lr": 0.3, "head_lr": 0.004, "scalar_lr": 0.01}
SETTINGS = OptimConfig(optimizer="muon", min_lr=0.0, weight_decay=0.1, beta1=0.8, eps=1e-10, **RATES)
SHAPE = ModelConfig(
    n_layer=2, n_head=2, n_embd=32, vocab_size=60, tied_head=False, residual="mixed", value_embeddings=True
)


def random_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def is_muons(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and name.startswith("blocks.")


def matrices(name: str, tensor: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values are three matrices to torch's Muon."""
    return tensor.chunk(3 if "qkv" in name else 1)


def test_block_matrices_are_updated_as_by_torchs_muon() -> None:
    model = GPT(SHAPE)
    ours = {name: parameter for name, parameter in model.named_parameters() if is_muons(name, parameter)}
    theirs = {name: [nn.Parameter(m.detach().clone()) for m in matrices(name, p)] for name, p in ours.items()}
    optimizer = build_optimizer(model, SETTINGS)
    reference = torch.optim.Muon([m for group in theirs.values() for m in group], lr=0.02, weight_decay=0.1)
    for step in range(4):
        random_gradients(model, step)
        for name, parameter in ours.items():
            assert parameter.grad is not None
            for matrix, gradient in zip(theirs[name], matrices(name, parameter.grad), strict=True):
                matrix.grad = gradient.clone()
        optimizer.step()
        reference.step()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, torch.cat(theirs[name]), rtol=1e-4, atol=1e-4)


def test_all_other_parameters_are_updated_as_by_torchs_adamw_at_their_own_rates() -> None:
    model = GPT(SHAPE)
    other = copy.deepcopy(model)
    rates = {"token_embedding": 0.3, "position_embedding": 0.3, "value_embeddings.tables": 0.3, "head": 0.004}
    groups = [
        {"params": [parameter], "lr": next((rate for start, rate in rates.items() if name.startswith(start)), 0.01)}
        for name, parameter in other.named_parameters()
        if not is_muons(name, parameter)
    ]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0)
    optimizer = build_optimizer(model, SETTINGS)
    for step in range(3):
        random_gradients(model, step)
        random_gradients(other, step)
        set_rates(optimizer, lr=0.02, momentum=0.95)
        optimizer.step()
        reference.step()
    for (name, found), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        if is_muons(name, found):
            assert not torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_schedule_multiplies_every_rate_alike() -> None:
    optimizer = build_optimizer(GPT(SHAPE), SETTINGS)
    set_rates(optimizer, lr=0.01, momentum=0.9)  # half the peak
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.002, 0.005, 0.01, 0.15])
    assert {group["momentum"] for group in optimizer.param_groups if group["kind"] == "matrix"} == {0.9}


def test_singular_values_become_close_to_one_and_zeros_stay_zeros() -> None:
    generator = torch.Generator().manual_seed(2)
    for shape in ((3, 8, 8), (2, 4, 20)):
        for spread in (1.0, 1e-3):
            values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=generator) * spread))
            assert values.max() < 1.3
            assert values.median() > 0.6
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_momentum_rises_linearly_to_its_setting() -> None:
    settings = OptimConfig(optimizer="muon", momentum=0.95, momentum_warmup_steps=100)
    assert [momentum(step, settings) for step in (0, 50, 100, 5000)] == pytest.approx([0.85, 0.90, 0.95, 0.95])
    assert momentum(0, OptimConfig(momentum=0.95)) == 0.95
    assert momentum(0, OptimConfig(momentum=0.5, momentum_warmup_steps=10)) == 0.5
