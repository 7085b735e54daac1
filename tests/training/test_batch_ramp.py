"""A growing batch: a pure function of the step, resumed bit for bit, measured and counted right."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quillgpt.config import (
    MOST_STAGES,
    RunConfig,
    TrainConfig,
    batch_plan,
    batch_stages,
    merged_plan,
    ramp_sequences,
    stage_batch_sizes,
)
from quillgpt.errors import ConfigError
from quillgpt.optim.schedules import learning_rate
from quillgpt.training import calibrate, loop
from quillgpt.training.calibrate import steps_within
from quillgpt.training.loop import train
from quillgpt.training.state import TrainState
from small_runs import assert_same_run, changed, column, killed_in_step, newest

RAMP = "0.25@0,0.5@0.3,1@0.6"
SIZES = [2] * 6 + [4] * 6 + [8] * 8
"""sequences of the steps of `ramped`"""


@pytest.fixture
def ramped(small_run: RunConfig) -> RunConfig:
    """20 steps of at last 8 sequences of 32 tokens: 2 from step 0, 4 from step 6, 8 from step 12."""
    return changed(small_run, batch_ramp=RAMP, eval_every=0, save_every=10)


def sizes_of(config: RunConfig) -> list[int]:
    """Sequences of each step, from the tokens that were counted."""
    tokens = [0, *column(config, "tokens")]
    return [(later - earlier) // config.model.context_length for earlier, later in itertools.pairwise(tokens)]


def sizes_by_definition(ramp: str, batch_size: int, steps: int) -> list[int]:
    """The batch size of every step, by looking at every stage for every step."""
    found = []
    for step in range(steps):
        shares = [share for share, begin in batch_stages(ramp) if round(begin * steps) <= step]
        found.append(max(1, round(shares[-1] * batch_size)))
    return found


# The plan


@settings(deadline=None)
@given(
    ramp=st.sampled_from([RAMP, "0.1@0,1@0.999", "1@0", "0.3@0,0.31@0.01,1@0.02", ""]),
    batch_size=st.one_of(st.integers(1, 12), st.just(480)),
    steps=st.one_of(st.integers(1, 40), st.just(1000)),
)
def test_the_plan_is_the_ramp_step_by_step(ramp: str, batch_size: int, steps: int) -> None:
    plan = batch_plan(ramp, batch_size=batch_size, steps=steps)
    state = TrainState(global_batch_size=plan[0][1], global_batch_size_changes=[list(stage) for stage in plan[1:]])
    schedule, expected = state.schedule(32), sizes_by_definition(ramp, batch_size, steps)
    assert plan[0][0] == 0
    assert [schedule.global_batch_size_at(step) for step in range(steps)] == expected
    total = ramp_sequences(ramp, batch_size=batch_size, steps=steps)
    assert schedule.first_token(steps) == 32 * sum(expected) == 32 * total
    assert set(expected) <= set(stage_batch_sizes(ramp, batch_size))


WRONG = [
    *("0.25", "0.25@0", "0.25@0,1@1", "1@0.5", "0@0,1@0.5", "-1@0,1@0.5", "0.5@0,2@0.5", "0.5@0,1@-0.1", "x", " "),
    *("0.5@0.3,1@0", "1@0,0.5@0.5", "0.5@0,0.5@0.2,1@0.4", "0.5@0,1@0", "nan@0,1@0.5", "0.5@nan,1@0.5", ",", "@"),
    *("0.5@0,1@0.5,", "0.5@0@0,1@0.5", "0.5@0;1@0.5", "inf@0,1@0.5", "0.5@0,1@1e999", "1" * 5000 + "@0"),
    ",".join(f"{(n + 1) / 100}@{n / 100}" for n in range(100)),
]


def test_what_is_not_a_ramp_is_refused_in_one_short_line() -> None:
    for ramp in WRONG:
        with pytest.raises(ConfigError, match=r"batch_ramp.*0\.25@0,0\.5@0\.3,1@0\.6") as raised:  # as one is written
            TrainConfig(batch_ramp=ramp)
        assert len(str(raised.value)) < 300
        assert str(raised.value).isprintable()
    most = ",".join(f"{(n + 1) / MOST_STAGES}@{n / MOST_STAGES}" for n in range(MOST_STAGES))
    assert len(batch_stages(most)) == MOST_STAGES


def test_past_stages_stay_when_the_plan_is_changed() -> None:
    done = [(0, 2), (6, 4), (12, 8)]
    same, longer = (batch_plan(RAMP, batch_size=8, steps=steps) for steps in (20, 40))
    assert merged_plan(done, same, 10) == merged_plan(done, same, 6) == merged_plan([], same, 0) == done
    assert merged_plan(done, batch_plan("", batch_size=6, steps=20), 10) == [(0, 2), (6, 4), (10, 6)]
    assert merged_plan(done, longer, 10) == [(0, 2), (6, 4), (10, 2), (12, 4), (24, 8)]


# Runs


def test_a_run_has_the_batches_of_its_ramp_with_the_root_of_the_rate(ramped: RunConfig) -> None:
    train(ramped)
    assert sizes_of(ramped) == SIZES
    state = newest(ramped).read_json("state.json")
    assert (state["global_batch_size"], state["global_batch_size_changes"], state["tokens"]) == (
        2,
        [[6, 4], [12, 8]],
        32 * 100,
    )
    schedule = TrainState(**state).schedule(32)
    assert [schedule.first_token(step) // 32 for step in (0, 6, 12, 20)] == [0, 12, 36, 100]
    rates = [learning_rate(step, 20, ramped.optim) * math.sqrt(size / 8) for step, size in enumerate(SIZES)]
    assert column(ramped, "lr") == pytest.approx(rates, rel=1e-12)
    assert learning_rate(3, 20, ramped.optim, 8 / 8) == learning_rate(3, 20, ramped.optim)


def test_a_ramp_of_one_stage_is_no_ramp(small_run: RunConfig, tmp_path: Path) -> None:
    one_stage = changed(small_run, batch_ramp="1@0", out=str(tmp_path / "one-stage"))
    train(small_run)
    train(one_stage)
    assert_same_run(small_run, one_stage)


def test_each_token_is_seen_once_an_epoch(ramped: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ramp's batches, one after the other, are those of a run with one sequence a step."""
    gradients, seen = loop.gradients, []

    def recorded(wrapped: object, inputs: torch.Tensor, targets: torch.Tensor, **others: Any) -> torch.Tensor:
        seen.append(targets)
        return gradients(wrapped, inputs, targets, **others)

    monkeypatch.setattr(loop, "gradients", recorded)
    train(ramped)
    growing = torch.cat(seen)
    seen.clear()
    single = {"batch_ramp": "", "batch_size": 1, "gradient_accumulation_steps": 1, "steps": 100, "save_every": 0}
    train(changed(ramped, **single, out=f"{ramped.train.out}-single"))
    assert torch.equal(growing, torch.cat(seen))


def test_killed_in_any_stage_the_resumed_run_is_bitwise_the_same(ramped: RunConfig, tmp_path: Path) -> None:
    config = changed(ramped, save_every=3, dropout=0.1)
    once = changed(config, out=str(tmp_path / "once"))
    train(once)
    for step in (4, 8, 13):
        killed = changed(config, out=str(tmp_path / f"killed-{step}"))
        killed_in_step(killed, step)
        train(killed)
        assert_same_run(killed, once)


def test_a_ramp_given_up_half_way_continues_in_the_data_without_a_gap(ramped: RunConfig) -> None:
    train(changed(ramped, stop_at_loss=1e9, eval_every=8))  # ends after step 8
    train(changed(ramped, batch_ramp="", steps=12))
    assert sizes_of(ramped) == [2] * 6 + [4] * 2 + [8] * 4


def test_the_first_stage_needs_a_sequence_for_each_rank(ramped: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(ConfigError, match="2 sequences for 3 ranks"):
        train(ramped)


# Minutes


@settings(deadline=None)
@given(first=st.integers(0, 30), budget=st.floats(0.0, 30.0), overhead=st.sampled_from([0.0, 0.02]))
def test_the_steps_within_a_budget_are_the_most_that_fit(first: int, budget: float, overhead: float) -> None:
    def seconds(size: int) -> float:
        return 0.1 + 0.05 * size

    def needed(count: int) -> float:
        return sum(seconds(size) + overhead for size in sizes_by_definition(RAMP, 8, first + count)[first:])

    found = steps_within(budget, ramp=RAMP, batch_size=8, first=first, seconds=seconds, overhead_seconds=overhead)
    assert found == 1 or needed(found) <= budget + 1e-9
    assert needed(found + 1) > budget - 1e-9


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 2, 4, 8 sequences is measured to take 1, 2, 3 seconds, and an evaluation half a second."""

    def step_seconds(config: RunConfig, runtime: Any, model: Any, patience: float) -> float:
        return math.log2(runtime.global_batch_size)

    monkeypatch.setattr(calibrate, "_step_seconds", step_seconds)
    monkeypatch.setattr(calibrate, "_evaluation_seconds", lambda runtime, model, data: 0.5)


@pytest.mark.usefixtures("timed")
def test_minutes_measure_every_size_of_the_batch_and_only_the_stages_that_are_left(ramped: RunConfig) -> None:
    new = changed(ramped, minutes=43 / 60, steps=600, out=f"{ramped.train.out}-new")
    assert train(new).step == 20  # 20 steps of this ramp take 42 s, 21 of it 45
    assert sizes_of(new) == SIZES
    train(changed(ramped, stop_at_loss=1e9, eval_every=8))  # ends after step 8
    steps = train(changed(ramped, minutes=30.5 / 60)).step
    fits = [sum(map(math.log2, sizes_by_definition(RAMP, 8, last)[8:])) <= 30 for last in (steps, steps + 1)]
    assert fits == [True, False]
