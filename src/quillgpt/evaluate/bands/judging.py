"""A run against its band: the same smoothed loss of the same steps, from the lines of metrics as they come."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quillgpt.evaluate.bands.band import Band

SAME_MULTIPLIER = 0.1  # learning rate divided by its peak; beyond, the schedule is another one


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run at a point of its band: the smoothed loss and the interval, in nats per token."""

    step: int
    loss: float
    low: float
    high: float

    @property
    def excess(self) -> float:
        """Nats above (+) or below (-) the interval; 0 inside."""
        return self.loss - min(max(self.loss, self.low), self.high)

    def told(self) -> str:
        """The numbers in words."""
        return f"smoothed loss {self.loss:.3f} at step {self.step:,}; the band is {self.low:.3f} to {self.high:.3f}"


@dataclass(kw_only=True)
class Judge:
    """Takes in a run's lines of metrics, in order, and says at each point of the band where the run is.

    `peak_lr` is the run's own. `points` has what was judged; `ended` says why no more will be, and is empty until then.
    """

    band: Band
    peak_lr: float
    points: list[Point] = field(default_factory=list)
    ended: str = ""
    _lines: list[tuple[int, int, float]] = field(default_factory=list, init=False)  # from step, to step, mean loss
    _next: int = field(default=0, init=False)

    def take(self, line: Mapping[str, Any]) -> Point | None:
        """Take in a line; the point, if the line is at one and the lines before it fill its window."""
        step, mean = line["step"], line.get("mean_loss")
        if self.ended or not isinstance(mean, int | float):
            return None
        self.ended = self._end(line)
        if self.ended:
            return None
        self._lines.append((self._lines[-1][1] if self._lines else 0, step, float(mean)))
        while self.band.tokens[self._next] < line["tokens"] and self._next < len(self.band.tokens) - 1:
            self._next += 1
        if self.band.tokens[self._next] != line["tokens"]:
            return None
        loss = self._smoothed(step - self.band.window_tokens // self.band.tokens_per_step)
        if not math.isfinite(loss):
            return None
        place = self._next
        point = Point(step=step, loss=loss, low=float(self.band.low[place]), high=float(self.band.high[place]))
        self.points.append(point)
        return point

    def _end(self, line: Mapping[str, Any]) -> str:
        step = line["step"]
        if line["tokens"] > self.band.tokens[-1]:
            return f"the band ends at step {self.band.steps:,}"
        if line["tokens"] != step * self.band.tokens_per_step:
            return f"from step {step:,} on no band: the batch is another"
        own = line["lr"] / self.peak_lr if self.peak_lr else self.band.multiplier(step)
        if abs(own - self.band.multiplier(step)) > SAME_MULTIPLIER:
            return f"from step {step:,} on no band: the schedule is another"
        return ""

    def _smoothed(self, first: int) -> float:
        """The mean loss of the steps after `first`; NaN where the lines do not begin there."""
        total, begin, end = 0.0, self._lines[-1][1], self._lines[-1][1]
        for start, stop, mean in reversed(self._lines):
            if begin <= first:
                break
            total += mean * (stop - start)
            begin = start
        return total / (end - first) if begin == first else math.nan

    @property
    def outside(self) -> list[Point]:
        """The points at which the run is outside."""
        return [point for point in self.points if point.excess]

    @property
    def since(self) -> int:
        """The step from which on the run has been on the side of the interval, or inside it, where it is now."""
        step = 0
        for point in reversed(self.points):
            if _side(point) != _side(self.points[-1]):
                break
            step = point.step
        return step

    def told(self) -> str:
        """Where the run is, in words; nothing before the first point."""
        if not self.points:
            return self.ended
        last = self.points[-1]
        if not last.excess:
            return (
                f"ended inside the reference band (step {last.step:,})" if self.ended else "inside the reference band"
            )
        where = "above" if last.excess > 0 else "below"
        return f"{abs(last.excess):.2f} {where} the reference band since step {self.since:,}"


def judged(band: Band, lines: Iterable[Mapping[str, Any]], *, peak_lr: float) -> Judge:
    """A judge who has taken in the lines."""
    judge = Judge(band=band, peak_lr=peak_lr)
    for line in lines:
        judge.take(line)
    return judge


def _side(point: Point) -> int:
    return (point.excess > 0) - (point.excess < 0)
