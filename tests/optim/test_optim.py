"""Optimizers and schedules against their formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from quillgpt.config import OptimConfig
from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.optim import OPTIMIZERS, build_optimizer, load_state_tensors, set_rates, state_tensors
from quillgpt.optim.schedules import SCHEDULES, learning_rate


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4))
        self.bias = nn.Parameter(torch.linspace(-1, 1, 4, dtype=torch.float64))

    def loss(self, step: int) -> Tensor:
        x = torch.arange(3, dtype=torch.float64) + step
        return ((x @ self.matrix + self.bias) ** 2).mean()

    def train_steps(self, steps: range, optimizer: torch.optim.Optimizer) -> None:
        for step in steps:
            optimizer.zero_grad()
            self.loss(step).backward()
            optimizer.step()


def test_adamw_is_its_formula_and_decays_matrices_only() -> None:
    """[Loshchilov 2019, algorithm 2]."""
    settings = OptimConfig(lr=0.05, min_lr=0.0, weight_decay=0.3)
    ours, expected = Small(), Small()
    ours.train_steps(range(1, 8), build_optimizer(ours, settings))
    moments = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in expected.named_parameters()}
    for step in range(1, 8):
        expected.zero_grad()
        expected.loss(step).backward()
        for name, parameter in expected.named_parameters():
            g, (m, v) = parameter.grad, moments[name]
            assert g is not None
            moments[name] = m, v = [0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2]
            m_hat, v_hat = m / (1 - 0.9**step), v / (1 - 0.95**step)
            decay = 0.3 if name == "matrix" else 0.0
            parameter.data -= 0.05 * (m_hat / (v_hat.sqrt() + settings.eps) + decay * parameter.data)
    for found, wanted in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_an_optimizer_continues_from_its_saved_state_exactly(subtests: pytest.Subtests) -> None:
    for name in OPTIMIZERS:
        with subtests.test(name):
            settings = OptimConfig(optimizer=name, lr=0.05, min_lr=0.0)
            uninterrupted, resumed = Small(), Small()
            uninterrupted.train_steps(range(1, 9), build_optimizer(uninterrupted, settings))
            first, second = build_optimizer(resumed, settings), build_optimizer(resumed, settings)
            resumed.train_steps(range(1, 5), first)
            saved = {key: value.clone() for key, value in state_tensors(first, resumed).items()}
            load_state_tensors(second, resumed, saved, settings)
            resumed.train_steps(range(5, 9), second)
            assert all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters(), resumed.parameters(), strict=True))
            assert all(key.startswith(("matrix.", "bias.")) for key in saved)


def test_unknown_state_and_unknown_optimizers_are_refused() -> None:
    model = Small()
    with pytest.raises(CheckpointError, match=r"bias\.exp_avg is missing"):
        load_state_tensors(build_optimizer(model, OptimConfig()), model, {}, OptimConfig())
    with pytest.raises(ConfigError, match="did you mean adamw"):
        build_optimizer(model, OptimConfig(optimizer="adam"))


def test_setting_the_rate_reaches_every_group() -> None:
    optimizer = build_optimizer(Small(), OptimConfig())
    set_rates(optimizer, lr=0.125, momentum=0.9)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


EXPECTED = {
    "cosine": lambda x: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * x)),
    "linear": lambda x: 0.1 + 0.9 * (1 - x),
    "wsd": lambda x: 1.0 if x <= 0.8 else 0.1 + 0.9 * (1 - x) / 0.2,
    "constant": lambda x: 1.0,
}


def test_a_schedule_warms_up_follows_its_formula_and_stays_at_its_end(subtests: pytest.Subtests) -> None:
    for name in SCHEDULES:
        with subtests.test(name):
            settings = OptimConfig(lr=1.0, min_lr=0.1, schedule=name, warmup_steps=10)
            assert [learning_rate(step, 110, settings) for step in (0, 4, 9)] == pytest.approx(
                [1 / 11, 5 / 11, 10 / 11]
            )
            for step in range(10, 110):
                assert learning_rate(step, 110, settings) == pytest.approx(EXPECTED[name]((step - 10) / 100), abs=1e-12)
            ended = OptimConfig(lr=1.0, min_lr=0.1, schedule=name, decay_steps=50)
            assert [learning_rate(step, 100, ended) for step in (50, 99)] == pytest.approx([EXPECTED[name](1.0)] * 2)


@given(
    st.sampled_from([*SCHEDULES]), st.integers(0, 300), st.integers(1, 300), st.integers(0, 300), st.integers(0, 300)
)
def test_a_rate_is_between_0_and_lr_whatever_the_lengths(
    name: str, step: int, steps: int, warmup: int, end: int
) -> None:
    settings = OptimConfig(schedule=name, warmup_steps=warmup, decay_steps=end)
    assert 0 < learning_rate(step, steps, settings) <= settings.lr
