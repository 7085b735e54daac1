"""The number of threads by measurement: which is taken, when it is measured at all, and that it leaves no trace."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.config import RunConfig, updated
from quillgpt.distributed import Ranks
from quillgpt.hardware import detect
from quillgpt.model.gpt import GPT
from quillgpt.run_dir import RunDirectory
from quillgpt.train import calibrate, loop, setup
from quillgpt.train.calibrate import fastest_threads
from quillgpt.train.loop import train
from quillgpt.train.resolve import Choices, resolve
from quillgpt.train.resume import Position


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"THREADS_SECONDS": 0.0, "MEASURE_SECONDS": 0.05, "WARMUP_SECONDS": 0.0}.items():
        monkeypatch.setattr(calibrate, name, seconds)


def measured(monkeypatch: pytest.MonkeyPatch, milliseconds: dict[int, float], most: int) -> tuple[int, str]:
    """What is chosen where a step takes so long on so many threads."""

    monkeypatch.setattr(calibrate, "_trial_step", lambda *_: lambda: None)
    monkeypatch.setattr(calibrate, "_mean_seconds", lambda _: milliseconds[torch.get_num_threads()] / 1000)
    config = RunConfig()
    choices = dataclasses.replace(resolve(config, detect(), Ranks())[0], threads=most)
    return fastest_threads(config, choices, None)  # pyrefly: ignore  (the trial does not look at it)


@pytest.mark.parametrize(
    ("milliseconds", "threads"),
    [
        ({8: 2, 4: 6, 2: 12}, 8),
        ({8: 12, 4: 6, 2: 2, 1: 6}, 2),
        ({8: 12, 4: 6, 2: 3, 1: 1}, 1),
        ({8: 10, 4: 9.8}, 8),  # a gain that is not clear
        ({1: 1}, 1),
        ({6: 8, 3: 4, 1: 12}, 3),
    ],
)
def test_fewer_threads_are_taken_as_long_as_they_are_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, milliseconds: dict[int, float], threads: int
) -> None:
    before = torch.get_num_threads()
    best, reason = measured(monkeypatch, milliseconds, max(milliseconds))
    assert best == threads
    assert reason.startswith(f"measured: {max(milliseconds)}: ")
    assert torch.get_num_threads() == before


def test_minutes_are_planned_by_the_median_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the fastest ones a run takes longer than asked for, by the mean one disturbance makes it shorter."""
    now, steps = [0.0], iter([9.0, 1.0, 1.0, 2.0, 2.0, 2.0, 30.0])
    monkeypatch.setattr(calibrate, "_trial_step", lambda *_: lambda: now.__setitem__(0, now[0] + next(steps)))
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(calibrate, "MEASURE_SECONDS", 40.0)
    choices, _ = resolve(RunConfig(), detect(), Ranks())
    found = calibrate._step_seconds(RunConfig(), choices, None, patience=1)  # pyrefly: ignore  (the trial does not look)
    assert found == 2.0


def test_measuring_draws_no_random_number_and_changes_no_weight(small_run: RunConfig) -> None:
    choices, _ = resolve(small_run, detect(), Ranks())
    model = GPT(small_run.model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    fastest_threads(small_run, dataclasses.replace(choices, threads=2), model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "position", "changes", "is_measured"),
    [
        ({"minutes": 1.0}, {}, {}, True),
        ({"minutes": 0.0}, {}, {}, False),
        ({"minutes": 1.0, "threads": 4}, {}, {}, False),
        ({"minutes": 1.0}, {"step": 3}, {}, False),
        ({"minutes": 1.0}, {"steps": 30}, {}, False),
        ({"minutes": 1.0}, {}, {"world_size": 2}, False),
        ({"minutes": 1.0}, {}, {"device": "cuda:0"}, False),
        ({"minutes": 1.0}, {}, {"threads": 1}, False),
        ({"minutes": 1.0}, {}, {"compile": True}, False),
    ],
)
def test_threads_are_measured_for_a_new_run_of_so_many_minutes_alone(
    settings: dict[str, Any], position: dict[str, int], changes: dict[str, Any], is_measured: bool
) -> None:
    config = updated(RunConfig(), settings, where="test")
    base = {"device": "cpu", "threads": 8, "compile": False, "world_size": 1}
    choices = dataclasses.replace(resolve(RunConfig(), detect(), Ranks())[0], **(base | changes))
    assert setup._measures_threads(config, Position(**position), choices) is is_measured


def test_what_was_measured_is_used_told_and_kept_by_a_resumed_run(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = loop.resolve
    monkeypatch.setattr(
        loop, "resolve", lambda *given: (dataclasses.replace(resolved(*given)[0], threads=2), resolved(*given)[1])
    )
    monkeypatch.setattr(setup, "fastest_threads", lambda *_: (1, "measured: so"))
    monkeypatch.setattr(setup, "steps_for_minutes", lambda *_: 4)
    told: list[tuple[Choices, str]] = []
    parts = setup.set_up

    def seen(*given: Any) -> Any:
        made = parts(*given)
        told.append((made.choices, made.reasons.get("threads", "")))
        return made

    monkeypatch.setattr(loop, "set_up", seen)
    config = updated(small_run, {"minutes": 1.0, "threads": 0, "save_every": 0}, where="test")
    train(config)
    saved = checkpoint.committed(RunDirectory(Path(config.train.out)))[-1]
    assert saved.read_json(checkpoint.RESOLVED)["threads"] == 1
    monkeypatch.setattr(setup, "fastest_threads", lambda *_: pytest.fail("measured again"))
    train(config)
    assert [(choices.threads, why) for choices, why in told] == [(1, "measured: so"), (1, "")]
