"""Losses read off records of which every point is known."""

import math
from pathlib import Path

import numpy as np
import pytest

from quillgpt.compare.groups import grouped
from quillgpt.compare.readings import (
    HELD_OUT,
    TRAINING,
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
from quillgpt.run_record import read_run
from synthetic_runs import write_run


def series(*points: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    columns = np.array(points, dtype=np.float64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def test_the_common_point_is_the_end_of_the_shortest() -> None:
    assert last_common_point([series((10, 1), (30, 1)), series((5, 1), (20, 1))]) == 20
    assert last_common_point([series((10, 1)), series((10, 2))]) == 10
    assert math.isnan(last_common_point([series((10, 1), (30, 1)), series((1, 1), (9, 1))]))
    assert math.isnan(last_common_point([series((10, 1)), series()]))
    assert math.isnan(last_common_point([]))


@pytest.mark.parametrize(("at", "expected"), [(10, 3.0), (15, 2.5), (20, 2.0), (30, 1.0), (27.5, 1.25)])
def test_between_evaluations_the_loss_lies_on_the_line(at: float, expected: float) -> None:
    assert interpolated(series((10, 3), (20, 2), (30, 1)), at) == pytest.approx(expected)


@pytest.mark.parametrize("at", [9.999, 30.001])
def test_beyond_the_evaluations_nothing_is_read(at: float) -> None:
    with pytest.raises(AssertionError):
        interpolated(series((10, 3), (20, 2), (30, 1)), at)


def test_a_training_loss_is_the_mean_of_the_last_tenth() -> None:
    points = series((90, 9), (91, 4), (100, 2), (110, 50))
    assert mean_before(points, 100) == 3.0  # 90 is not in the last tenth of 100, and 110 is behind it
    assert mean_before(series((10, 4), (100, 2)), 55) == 3.0  # no line there: interpolated


def test_of_a_step_written_twice_the_later_line_counts_and_what_is_no_number_does_not(tmp_path: Path) -> None:
    again = [
        {"step": 50, "held_out_loss": 2.0},
        {"step": 75, "held_out_loss": math.nan},
        {"step": 80, "held_out_loss": None},
        {"step": math.inf, "held_out_loss": 1.0},
    ]
    run = read_run(write_run(tmp_path / "a", held_out=[5.0, 4.0], lines=again))
    places, values = finite_series(run, HELD_OUT, "step")
    assert (places.tolist(), values.tolist()) == ([50.0, 100.0], [2.0, 4.0])


def test_losses_at_equal_steps_tokens_and_seconds(tmp_path: Path) -> None:
    """A takes 0.1 s a step and B 0.2 s, so at B's 10 s A is at its end, and at A's 10 s B is half way."""
    fast = write_run(tmp_path / "a", held_out=[4.0, 3.0], seconds_per_step=0.1)
    slow = write_run(tmp_path / "b", held_out=[3.8, 2.8], seconds_per_step=0.2, settings={"lr": 1.0})
    groups, _ = grouped([read_run(fast), read_run(slow)])
    found = {
        (one.name, one.over): (one.at, *(sample.mean for sample in one.samples))
        for one in measures(groups, [TRAINING, HELD_OUT])
    }
    assert found[HELD_OUT, "step"] == (100, 3.0, 2.8)
    assert found[HELD_OUT, "tokens"] == (100_000, 3.0, 2.8)
    assert found[HELD_OUT, "elapsed_seconds"] == pytest.approx((10, 3.0, 3.8))
    assert found[TRAINING, "elapsed_seconds"] == pytest.approx((10, 3.25, 4.05))


def test_a_training_loss_is_the_mean_over_steps_where_the_lines_have_it(tmp_path: Path) -> None:
    lines = [{"step": 95, "loss": 9.0, "mean_loss": 2.0}, {"step": 100, "loss": 9.0, "mean_loss": 4.0}]
    groups, _ = grouped([read_run(write_run(tmp_path / "a", lines=lines)), read_run(write_run(tmp_path / "b", seed=2))])
    found = measures(groups, [TRAINING])
    assert found[0].samples[0].by_seed == {1: 3.0, 2: 3.25}


def test_what_one_run_never_had_is_no_measure(tmp_path: Path) -> None:
    """One evaluation each, at the end: there is no number of seconds that both have."""
    fast = write_run(tmp_path / "a", held_out=[3.0], seconds_per_step=0.1)
    slow = write_run(tmp_path / "b", held_out=[2.8], seconds_per_step=0.2, settings={"lr": 1.0})
    groups, _ = grouped([read_run(fast), read_run(slow)])
    assert [one.over for one in measures(groups, [HELD_OUT])] == ["step", "tokens"]


def test_the_end_is_that_of_finished_runs(tmp_path: Path) -> None:
    paths = write_run(tmp_path / "a", held_out=3.0), write_run(tmp_path / "b", seed=2, held_out=2.0, until=90)
    groups, _ = grouped([read_run(path) for path in paths])
    assert at_the_end(groups, HELD_OUT).samples[0].by_seed == {1: 3.0}


def test_how_far_a_run_is(tmp_path: Path) -> None:
    finished = read_run(write_run(tmp_path / "a"))
    assert (planned_steps(finished), steps_done(finished), is_finished(finished)) == (100, 100, True)
    halted = read_run(write_run(tmp_path / "b", until=40))
    assert (planned_steps(halted), steps_done(halted), is_finished(halted)) == (100, 40, False)
    empty = read_run(write_run(tmp_path / "c", held_out=[]))
    assert (steps_done(empty), is_finished(empty), has_diverged(empty)) == (0, False, False)
    chosen = read_run(write_run(tmp_path / "d", settings={"minutes": 1.0}, environment={"steps": None}))
    assert (planned_steps(chosen), is_finished(chosen)) == (0, False)
    old = read_run(write_run(tmp_path / "e", environment={"steps": None}))
    assert (planned_steps(old), is_finished(old)) == (100, True)


@pytest.mark.parametrize(
    "line", [{"loss": math.nan}, {"loss": math.inf}, {"held_out_loss": math.nan}, {"loss": 3.0, "diverged": True}]
)
def test_a_run_that_ended_without_a_finite_loss_has_diverged(line: dict, tmp_path: Path) -> None:
    assert has_diverged(read_run(write_run(tmp_path / "a", until=50, lines=[{"step": 51, **line}])))
    mended = [{"step": 51, **line}, {"step": 52, "loss": 3.0}]
    assert not has_diverged(read_run(write_run(tmp_path / "b", until=50, lines=mended)))
