"""Losses read from the records of runs at one step, number of tokens or elapsed time, and at the end.

A validation loss between two evaluations is interpolated linearly, never extrapolated. A training loss is the mean of
the logged lines in the last tenth before the point, because a single batch is noisy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quillgpt.lab.compare.groups import RunGroup, seed_of
from quillgpt.lab.compare.statistics import Sample
from quillgpt.lab.run_record import RunRecord

TRAINING, VALIDATION, BITS_PER_BYTE = "train_loss", "val_loss", "val_bpb"
AXES = ("step", "tokens", "elapsed_seconds")
END = "end"
AVERAGED = 0.1  # share of the steps before a point over which a training loss is averaged

Series = tuple[np.ndarray, np.ndarray]  # (n,) increasing places, (n,) values


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A column of metrics.jsonl, read for every group `at` a value of the axis `over`; `at` is NaN if it is the end."""

    name: str
    over: str
    at: float
    samples: tuple[Sample, ...]

    @property
    def unit(self) -> str:
        """Nats per token or bits per byte."""
        return "nats per token" if self.name in (TRAINING, VALIDATION) else "bits per byte"

    @property
    def place(self) -> str:
        """Where it was read, in words."""
        seconds = f"after {self.at:,.1f} s" if self.at < 100 else f"after {self.at:,.0f} s"
        places = {"step": f"at step {self.at:,.0f}", "tokens": f"at {self.at:,.0f} tokens", END: "at the end"}
        return places.get(self.over, seconds)


def planned_steps(run: RunRecord) -> int:
    """Steps the run is to take; 0 if its records do not say."""
    resolved = run.environment.get("steps")
    return resolved if isinstance(resolved, int) else 0 if run.config.train.minutes else run.config.train.steps


def steps_done(run: RunRecord) -> int:
    """The last step in the metrics."""
    return max((line["step"] for line in run.lines if isinstance(line.get("step"), int)), default=0)


def is_finished(run: RunRecord) -> bool:
    """Whether all steps are done and evaluated, or the loss to stop at was reached."""
    if run.lines and run.lines[-1].get("has_reached_loss"):
        return True
    steps, _ = finite_series(run, VALIDATION, "step")
    return planned_steps(run) > 0 and len(steps) > 0 and bool(steps[-1] >= planned_steps(run))


def has_diverged(run: RunRecord) -> bool:
    """Whether an unfinished run's last line is marked as diverged or has a loss that is not finite."""
    if is_finished(run) or not run.lines:
        return False
    last = run.lines[-1]
    losses = [last.get(TRAINING), last.get(VALIDATION)]
    return bool(last.get("diverged")) or any(isinstance(loss, float) and not math.isfinite(loss) for loss in losses)


def finite_series(run: RunRecord, name: str, over: str) -> Series:
    """Two columns of metrics.jsonl in increasing order, finite values only; the later of two lines at one place."""
    places, values = run.series(name, over)
    is_kept = np.isfinite(places) & np.isfinite(values)
    by_place = dict(zip(places[is_kept].tolist(), values[is_kept].tolist(), strict=True))
    rising = np.array(sorted(by_place.items()), dtype=np.float64).reshape(-1, 2)
    return rising[:, 0], rising[:, 1]


def measures(groups: Sequence[RunGroup], names: Sequence[str]) -> list[Measure]:
    """Each column at the last point of each axis that all runs have reached, if there is one."""
    found = []
    for name in names:
        for over in AXES:
            series = [[_loss_series(run, name, over) for run in group.runs] for group in groups]
            at = last_common_point([one for several in series for one in several])
            if not math.isnan(at):
                read = mean_before if name == TRAINING else interpolated
                samples = tuple(
                    Sample(by_seed={seed_of(run): read(one, at) for run, one in zip(group.runs, several, strict=True)})
                    for group, several in zip(groups, series, strict=True)
                )
                found.append(Measure(name=name, over=over, at=at, samples=samples))
    return found


def at_the_end(groups: Sequence[RunGroup], name: str) -> Measure:
    """The last value of each finished run, whatever its length."""
    samples = []
    for group in groups:
        values = {seed_of(run): finite_series(run, name, "step")[1] for run in group.runs if is_finished(run)}
        samples.append(Sample(by_seed={seed: float(column[-1]) for seed, column in values.items() if len(column)}))
    return Measure(name=name, over=END, at=math.nan, samples=tuple(samples))


def last_common_point(series: Sequence[Series]) -> float:
    """The last place within the range of every series; NaN if there is none."""
    if not series or any(len(places) == 0 for places, _ in series):
        return math.nan
    first, last = max(places[0] for places, _ in series), min(places[-1] for places, _ in series)
    return float(last) if first <= last else math.nan


def interpolated(series: Series, at: float) -> float:
    """The value at a place between the first and the last, interpolated linearly."""
    places, values = series
    assert places[0] <= at <= places[-1]
    return float(np.interp(at, places, values))


def mean_before(series: Series, at: float) -> float:
    """The mean of the values in the last tenth up to and including a place; interpolated if it has none."""
    places, values = series
    is_near = (places > (1 - AVERAGED) * at) & (places <= at)
    return float(values[is_near].mean()) if is_near.any() else interpolated(series, at)


def _loss_series(run: RunRecord, name: str, over: str) -> Series:
    mean = finite_series(run, "train_loss_mean", over)
    return mean if name == TRAINING and len(mean[0]) else finite_series(run, name, over)
