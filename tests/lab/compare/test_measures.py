"""Losses read from records of which every point is known."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillgpt.lab.compare.groups import RunGroup, grouped
from quillgpt.lab.compare.measures import (
    TRAINING,
    VALIDATION,
    at_the_end,
    finite_series,
    has_diverged,
    interpolated,
    is_finished,
    last_common_point,
    mean_before,
    measures,
    planned_steps,
    steps_done,
)
from quillgpt.lab.run_record import read_run
from synthetic_runs import write_run


def series(*points: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    columns = np.array(points, dtype=np.float64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def groups_of(*paths: Path) -> list[RunGroup]:
    return grouped([read_run(path) for path in paths])[0]


def test_the_common_point_is_the_end_of_the_shortest_series() -> None:
    assert last_common_point([series((10, 1), (30, 1)), series((5, 1), (20, 1))]) == 20
    assert last_common_point([series((10, 1)), series((10, 2))]) == 10
    for without in ([series((10, 1), (30, 1)), series((1, 1), (9, 1))], [series((10, 1)), series()], []):
        assert math.isnan(last_common_point(without))


@given(at=st.floats(10, 30))
def test_a_validation_loss_is_interpolated_linearly_and_never_extrapolated(at: float) -> None:
    points = series((10, 3), (20, 2), (30, 0))
    assert interpolated(points, at) == pytest.approx(4 - at / 10 if at <= 20 else 6 - at / 5)
    for beyond in (at - 20.001, at + 20.001):
        with pytest.raises(AssertionError):
            interpolated(points, beyond)


def test_a_training_loss_is_the_mean_of_the_last_tenth(tmp_path: Path) -> None:
    points = series((90, 9), (91, 4), (100, 2), (110, 50))
    assert mean_before(points, 100) == 3.0  # neither 90, which is a tenth before 100, nor 110
    assert mean_before(series((10, 4), (100, 2)), 55) == 3.0  # no line there: interpolated
    lines = [
        {"step": 95, "train_loss": 9.0, "train_loss_mean": 2.0},
        {"step": 100, "train_loss": 9.0, "train_loss_mean": 4.0},
    ]
    groups = groups_of(write_run(tmp_path / "a", lines=lines), write_run(tmp_path / "b", seed=2))
    assert measures(groups, [TRAINING])[0].samples[0].by_seed == {1: 3.0, 2: 3.25}  # train_loss_mean if it is logged


def test_the_later_of_two_lines_of_a_step_counts_and_only_finite_numbers(tmp_path: Path) -> None:
    again = [
        {"step": 50, "val_loss": 2.0},
        {"step": 75, "val_loss": math.nan},
        {"step": 80, "val_loss": None},
        {"step": math.inf, "val_loss": 1.0},
    ]
    run = read_run(write_run(tmp_path / "a", validation=[5.0, 4.0], lines=again))
    places, values = finite_series(run, VALIDATION, "step")
    assert (places.tolist(), values.tolist()) == ([50.0, 100.0], [2.0, 4.0])


def test_losses_are_read_at_equal_steps_tokens_and_seconds(tmp_path: Path) -> None:
    """A takes 0.1 s a step and B 0.2 s: after 10 s A is at its end and B half way."""
    fast = write_run(tmp_path / "a", validation=[4.0, 3.0], seconds_per_step=0.1)
    slow = write_run(tmp_path / "b", validation=[3.8, 2.8], seconds_per_step=0.2, settings={"lr": 1.0})
    found = {
        (one.name, one.over): (one.at, *(sample.mean for sample in one.samples))
        for one in measures(groups_of(fast, slow), [TRAINING, VALIDATION])
    }
    assert found[VALIDATION, "step"] == (100, 3.0, 2.8)
    assert found[VALIDATION, "tokens"] == (100_000, 3.0, 2.8)
    assert found[VALIDATION, "elapsed_seconds"] == pytest.approx((10, 3.0, 3.8))
    assert found[TRAINING, "elapsed_seconds"] == pytest.approx((10, 3.25, 4.05))
    once = [
        write_run(tmp_path / name, validation=[3.0], seconds_per_step=seconds, settings={"lr": lr})
        for name, seconds, lr in (("c", 0.1, 0.1), ("d", 0.2, 0.2))
    ]
    assert [one.over for one in measures(groups_of(*once), [VALIDATION])] == ["step", "tokens"]  # no common second


def test_progress_of_a_run(tmp_path: Path) -> None:
    paths = write_run(tmp_path / "a", validation=3.0), write_run(tmp_path / "b", seed=2, validation=2.0, until=40)
    finished, stopped = map(read_run, paths)
    assert (planned_steps(finished), steps_done(finished), is_finished(finished)) == (100, 100, True)
    assert (planned_steps(stopped), steps_done(stopped), is_finished(stopped)) == (100, 40, False)
    assert at_the_end(groups_of(*paths), VALIDATION).samples[0].by_seed == {1: 3.0}
    empty = read_run(write_run(tmp_path / "c", validation=[]))
    assert (steps_done(empty), is_finished(empty), has_diverged(empty)) == (0, False, False)
    unknown = read_run(write_run(tmp_path / "d", settings={"minutes": 1.0}, environment={"steps": None}))
    assert (planned_steps(unknown), is_finished(unknown)) == (0, False)
    old = read_run(write_run(tmp_path / "e", environment={"steps": None}))
    assert (planned_steps(old), is_finished(old)) == (100, True)
    reached = read_run(write_run(tmp_path / "f", until=40, lines=[{"step": 41, "has_reached_loss": True}]))
    assert is_finished(reached)


def test_a_run_whose_last_loss_is_not_finite_has_diverged(tmp_path: Path) -> None:
    lines = [
        {"train_loss": math.nan},
        {"train_loss": math.inf},
        {"val_loss": math.nan},
        {"train_loss": 3.0, "diverged": True},
    ]
    for i, line in enumerate(lines):
        assert has_diverged(read_run(write_run(tmp_path / f"a{i}", until=50, lines=[{"step": 51, **line}])))
        recovered = [{"step": 51, **line}, {"step": 52, "train_loss": 3.0}]
        assert not has_diverged(read_run(write_run(tmp_path / f"b{i}", until=50, lines=recovered)))
