"""Losses read off the records of runs: at one step, at one number of tokens, after one number of seconds, at the end.

A held-out loss between two evaluations is interpolated linearly, and never beyond the first or the last. A training
loss is one batch's and so noisy: it is the mean of the logged lines in the last tenth before the point.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quillgpt.compare.difference import Sample
from quillgpt.compare.groups import Group, seed_of
from quillgpt.run_record import RunRecord

TRAINING, HELD_OUT, BITS_PER_BYTE = "loss", "held_out_loss", "held_out_bits_per_byte"
MEAN = "mean_loss"
AXES = ("step", "tokens", "elapsed_seconds")
END = "end"
LAST_PART = 0.1
"""of what came before a point: over these lines a training loss is averaged"""

Series = tuple[np.ndarray, np.ndarray]
"""two columns (n,): where, rising, and what"""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of each run, all read at one place: a name of metrics.jsonl, an axis or the end, the point on it."""

    name: str
    over: str
    at: float
    samples: tuple[Sample, ...]
    """for each group"""


def planned_steps(run: RunRecord) -> int:
    """The steps that the run is to do; 0 where its record does not tell."""
    resolved = run.environment.get("steps")
    return resolved if isinstance(resolved, int) else 0 if run.config.train.minutes else run.config.train.steps


def steps_done(run: RunRecord) -> int:
    """The last step in its metrics."""
    steps = [line["step"] for line in run.lines if isinstance(line.get("step"), int)]
    return max(steps, default=0)


def is_finished(run: RunRecord) -> bool:
    """Whether it has done all its steps and was evaluated after the last one, or reached the loss to stop at."""
    if run.lines and run.lines[-1].get("has_reached_loss"):
        return True
    steps, _ = finite_series(run, HELD_OUT, "step")
    return planned_steps(run) > 0 and len(steps) > 0 and bool(steps[-1] >= planned_steps(run))


def has_diverged(run: RunRecord) -> bool:
    """Whether it ended without a finite loss, or its last line has one that is no number."""
    if is_finished(run) or not run.lines:
        return False
    last = run.lines[-1]
    losses = [last.get(TRAINING), last.get(HELD_OUT)]
    return bool(last.get("diverged")) or any(isinstance(loss, float) and not math.isfinite(loss) for loss in losses)


def finite_series(run: RunRecord, name: str, over: str) -> Series:
    """Two columns of metrics.jsonl in rising order, without what is no number; of two lines of a place the later."""
    places, values = run.series(name, over)
    is_kept = np.isfinite(places) & np.isfinite(values)
    by_place = dict(zip(places[is_kept].tolist(), values[is_kept].tolist(), strict=True))
    rising = np.array(sorted(by_place.items()), dtype=np.float64).reshape(-1, 2)
    return rising[:, 0], rising[:, 1]


def measures(groups: Sequence[Group], names: Sequence[str]) -> list[Measure]:
    """Each of the names at the last point of each axis that all runs have reached, where there is one."""
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


def _loss_series(run: RunRecord, name: str, over: str) -> Series:
    mean = finite_series(run, MEAN, over)
    return mean if name == TRAINING and len(mean[0]) else finite_series(run, name, over)


def at_the_end(groups: Sequence[Group], name: str) -> Measure:
    """The last value of each run that is finished, whatever its length."""
    samples = tuple(
        Sample(
            by_seed={
                seed_of(run): float(finite_series(run, name, "step")[1][-1])
                for run in group.runs
                if is_finished(run) and len(finite_series(run, name, "step")[1])
            }
        )
        for group in groups
    )
    return Measure(name=name, over=END, at=math.nan, samples=samples)


def last_common_point(series: Sequence[Series]) -> float:
    """The last place that lies within the range of every series; NaN where they have none in common."""
    if not series or any(len(places) == 0 for places, _ in series):
        return math.nan
    first, last = max(places[0] for places, _ in series), min(places[-1] for places, _ in series)
    return float(last) if first <= last else math.nan


def interpolated(series: Series, at: float) -> float:
    """The value at a place between the first and the last, on the line between its neighbours."""
    places, values = series
    assert places[0] <= at <= places[-1]
    return float(np.interp(at, places, values))


def mean_before(series: Series, at: float) -> float:
    """The mean of the values in the last tenth before a place, the place included; of one value where it has none."""
    places, values = series
    is_near = (places > (1 - LAST_PART) * at) & (places <= at)
    return float(values[is_near].mean()) if is_near.any() else interpolated(series, at)
