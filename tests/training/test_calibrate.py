"""Calibration: the number of threads, the steps for a run in minutes, and that measuring leaves no trace."""

import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.config import RunConfig
from quillgpt.model.gpt import GPT
from quillgpt.training import calibrate, loop
from quillgpt.training.calibrate import fastest_threads
from quillgpt.training.loop import train
from quillgpt.training.state import TrainState
from small_runs import RUNTIME, changed, column, newest

NO_MODEL: Any = None  # for a trial step that does not use it


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"THREADS_SECONDS": 0.0, "MEASURE_SECONDS": 0.05, "WARMUP_SECONDS": 0.0}.items():
        monkeypatch.setattr(calibrate, name, seconds)


def test_half_as_many_threads_are_taken_as_long_as_they_are_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(calibrate, "_trial_step", lambda *_: lambda: None)
    cases: list[tuple[dict[int, float], int]] = [
        ({8: 2, 4: 6, 2: 12}, 8),
        ({8: 12, 4: 6, 2: 2, 1: 6}, 2),
        ({8: 12, 4: 6, 2: 3, 1: 1}, 1),
        ({8: 10, 4: 9.8}, 8),  # not clearly faster
        ({1: 1}, 1),
        ({6: 8, 3: 4, 1: 12}, 3),
    ]
    for milliseconds, expected in cases:

        def times(*_: Any, at_least: int, by: dict[int, float] = milliseconds) -> list[float]:
            return [by[torch.get_num_threads()] / 1000]

        monkeypatch.setattr(calibrate, "_times", times)
        found, reason = fastest_threads(RunConfig(), replace(RUNTIME, threads=max(milliseconds)), NO_MODEL)
        assert found == expected, milliseconds
        assert reason.startswith(f"measured: {max(milliseconds)}: ")
        assert torch.get_num_threads() == before


def test_the_steps_for_minutes_are_planned_by_the_median_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fastest step a run takes longer than requested; with the mean, one disturbance makes it shorter."""
    now, steps = [0.0], iter([9.0, 1.0, 1.0, 2.0, 30.0])
    monkeypatch.setattr(calibrate, "_trial_step", lambda *_: lambda: now.__setitem__(0, now[0] + next(steps)))
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(calibrate, "MEASURE_SECONDS", 34.0)
    assert calibrate._step_seconds(RunConfig(), RUNTIME, NO_MODEL, patience=1) == 1.5  # of 1, 1, 2, 30


def test_measuring_uses_no_random_number_and_changes_no_weight(small_run: RunConfig) -> None:
    model = GPT(small_run.model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    fastest_threads(small_run, replace(RUNTIME, threads=2), model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [name for name, weight in model.state_dict().items() if not torch.equal(weight, weights[name])] == []
    assert all(parameter.grad is None for parameter in model.parameters())


def test_threads_are_measured_only_for_a_new_run_in_minutes_on_one_cpu_without_compiling() -> None:
    is_measured = {}
    for change in ("", "minutes=0", "--threads 4", "step=3", "steps=30", "2 ranks", "cuda", "1 core", "compile"):
        requested = {"minutes": 0.0 if change == "minutes=0" else 1.0, "threads": 4 if change == "--threads 4" else 0}
        config = changed(RunConfig(), **requested)
        runtime = replace(
            RUNTIME,
            threads=1 if change == "1 core" else 8,
            steps=30 if change == "steps=30" else 0,
            world_size=2 if change == "2 ranks" else 1,
            device="cuda:0" if change == "cuda" else "cpu",
            compile=change == "compile",
        )
        loaded: Any = SimpleNamespace(runtime=runtime, state=TrainState(step=3 if change == "step=3" else 0))
        is_measured[change] = calibrate._measures_threads(config, loaded)
    assert [change for change, measured in is_measured.items() if measured] == [""]


def test_measured_threads_are_used_reported_and_kept_by_a_resumed_run(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, calibration = loop.resolve, loop.calibrate
    seen: list[tuple[int, str]] = []

    def resolve_to_two_threads(*arguments: Any) -> Any:
        runtime, reasons = resolve(*arguments)
        return replace(runtime, threads=2), reasons

    def recorded(*arguments: Any) -> Any:
        found = calibration(*arguments)
        seen.append((found.runtime.threads, found.reasons.get("threads", "")))
        return found

    monkeypatch.setattr(loop, "resolve", resolve_to_two_threads)
    monkeypatch.setattr(loop, "calibrate", recorded)
    monkeypatch.setattr(calibrate, "fastest_threads", lambda *_: (1, "measured: 1 is best"))
    monkeypatch.setattr(calibrate, "steps_for_minutes", lambda *_: 4)
    config = changed(small_run, minutes=1.0, threads=0, save_every=2)
    assert train(config).step == 4
    saved = newest(config)
    assert saved.read_json(checkpoint.RUNTIME)["threads"] == 1
    monkeypatch.setattr(calibrate, "fastest_threads", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(calibrate, "steps_for_minutes", lambda *_: pytest.fail("measured again"))
    shutil.rmtree(saved.path)
    assert train(config).step == 4  # from step 2
    assert seen == [(1, "measured: 1 is best"), (1, "")]


def test_minutes_fix_the_number_of_steps_and_change_nothing_else(small_run: RunConfig) -> None:
    timed = changed(small_run, minutes=0.01, eval_every=0, dropout=0.1, out=f"{small_run.train.out}-timed")
    steps = train(timed).step
    assert newest(timed).read_json("runtime.json")["steps"] == steps
    assert train(timed).step == steps  # a second call has nothing left to do
    fixed = changed(timed, minutes=0.0, steps=steps, out=f"{small_run.train.out}-fixed")
    train(fixed)
    assert column(timed, "train_loss") == column(fixed, "train_loss")


def test_a_run_takes_about_the_requested_minutes(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "MEASURE_SECONDS", 1.0)
    monkeypatch.setattr(calibrate, "WARMUP_SECONDS", 0.3)
    config = changed(small_run, minutes=0.05, eval_every=0, save_every=0)
    train(config)
    assert 1.0 < column(config, "elapsed_seconds")[-1] < 9.0  # 3 seconds, on a machine that does other things, too
