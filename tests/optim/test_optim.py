"""Optimizers and schedules against formulas written out."""

import math

import pytest
import torch
from torch import nn

from quillgpt.config import OptimConfig
from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.optim import OPTIMIZERS, build_optimizer, load_state_tensors, set_rates, state_tensors
from quillgpt.optim.schedules import SCHEDULES, learning_rate


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4))
        self.bias = nn.Parameter(torch.linspace(-1, 1, 4, dtype=torch.float64))

    def loss(self, step: int) -> torch.Tensor:
        x = torch.arange(3, dtype=torch.float64) + step
        return ((x @ self.matrix + self.bias) ** 2).mean()


def adamw_written_out(settings: OptimConfig, steps: int) -> dict[str, torch.Tensor]:
    """[Loshchilov 2019, algorithm 2], decay on the matrix alone."""
    model = Small()
    m = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    v = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for step in range(1, steps + 1):
        model.zero_grad()
        model.loss(step).backward()
        for name, parameter in model.named_parameters():
            g = parameter.grad
            assert g is not None
            m[name] = settings.beta1 * m[name] + (1 - settings.beta1) * g
            v[name] = settings.beta2 * v[name] + (1 - settings.beta2) * g**2
            m_hat = m[name] / (1 - settings.beta1**step)
            v_hat = v[name] / (1 - settings.beta2**step)
            decay = settings.weight_decay if name == "matrix" else 0.0
            update = m_hat / (v_hat.sqrt() + settings.eps) + decay * parameter.data
            parameter.data -= settings.lr * update
    return {name: parameter.data for name, parameter in model.named_parameters()}


def trained(settings: OptimConfig, steps: range, model: Small, optimizer: torch.optim.Optimizer) -> None:
    for step in steps:
        optimizer.zero_grad()
        model.loss(step).backward()
        optimizer.step()


def test_adamw_equals_the_formula_and_decays_matrices_only() -> None:
    settings = OptimConfig(lr=0.05, min_lr=0.0, weight_decay=0.3)
    model = Small()
    trained(settings, range(1, 8), model, build_optimizer(model, settings))
    for name, expected in adamw_written_out(settings, 7).items():
        torch.testing.assert_close(dict(model.named_parameters())[name].data, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_continues_from_its_saved_state_exactly(name: str) -> None:
    settings = OptimConfig(optimizer=name, lr=0.05, min_lr=0.0)
    whole = Small()
    trained(settings, range(1, 9), whole, build_optimizer(whole, settings))
    half = Small()
    first = build_optimizer(half, settings)
    trained(settings, range(1, 5), half, first)
    saved = {key: value.clone() for key, value in state_tensors(first, half).items()}
    second = build_optimizer(half, settings)
    load_state_tensors(second, half, saved.items())
    trained(settings, range(5, 9), half, second)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))
    assert all(key.startswith(("matrix.", "bias.")) for key in saved)


def test_state_of_a_parameter_the_model_lacks_is_refused() -> None:
    model = Small()
    optimizer = build_optimizer(model, OptimConfig())
    with pytest.raises(CheckpointError, match=r"other\.exp_avg"):
        load_state_tensors(optimizer, model, [("other.exp_avg", torch.zeros(1))])


def test_an_unknown_optimizer_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean adamw"):
        build_optimizer(Small(), OptimConfig(optimizer="adam"))


def test_setting_the_rate_reaches_every_group() -> None:
    model = Small()
    optimizer = build_optimizer(model, OptimConfig())
    set_rates(optimizer, lr=0.125, momentum=0.9)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


EXPECTED = {
    "cosine": lambda x: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * x)),
    "linear": lambda x: 0.1 + 0.9 * (1 - x),
    "wsd": lambda x: 1.0 if x <= 0.8 else 0.1 + 0.9 * (1 - x) / 0.2,
    "constant": lambda x: 1.0,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_warms_up_and_follows_its_formula(name: str) -> None:
    settings = OptimConfig(lr=1.0, min_lr=0.1, schedule=name, warmup_steps=10)
    assert [learning_rate(step, 110, settings) for step in (0, 4, 9)] == pytest.approx([1 / 11, 5 / 11, 10 / 11])
    for step in range(10, 110):
        assert learning_rate(step, 110, settings) == pytest.approx(EXPECTED[name]((step - 10) / 100), abs=1e-12)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "constant"])
def test_a_schedule_stays_at_its_end_after_decay_steps(name: str) -> None:
    settings = OptimConfig(lr=1.0, min_lr=0.1, schedule=name, decay_steps=50)
    assert learning_rate(50, 100, settings) == pytest.approx(0.1)
    assert learning_rate(99, 100, settings) == pytest.approx(0.1)


def test_warmup_longer_than_the_run_never_divides_by_zero() -> None:
    settings = OptimConfig(warmup_steps=100)
    assert all(0 < learning_rate(step, 10, settings) < settings.lr for step in range(10))
