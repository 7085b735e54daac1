"""Judge a run by its reference band, from the lines of its metrics, afterwards or while it trains."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quillgpt.lab.bands.band import Band, find_band
from quillgpt.lab.run_record import read_run

SAME_MULTIPLIER = 0.1  # a larger difference of learning rate / peak is another schedule


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run at a point of its band: smoothed loss and interval, in nats per token."""

    step: int
    loss: float
    low: float
    high: float

    @property
    def excess(self) -> float:
        """Nats above (+) or below (-) the interval; 0 inside."""
        return self.loss - min(max(self.loss, self.low), self.high)

    def text(self) -> str:
        """The numbers in words."""
        return f"smoothed loss {self.loss:.3f} at step {self.step:,}; the band is {self.low:.3f} to {self.high:.3f}"


@dataclass(kw_only=True)
class Judge:
    """Takes a run's metrics line by line and compares it with the band at each of the band's points.

    `peak_lr` is the run's. `points` are the results; `ended` says why there will be no more, "" until then.
    """

    band: Band
    peak_lr: float
    points: list[Point] = field(default_factory=list)
    ended: str = ""
    _lines: list[tuple[int, int, float]] = field(default_factory=list, init=False)  # from step, to step, mean loss

    def take(self, line: Mapping[str, Any]) -> Point | None:
        """Take a line; return a point if the band has one there and the lines fill its window exactly."""
        step, mean, band = line["step"], line.get("train_loss_mean"), self.band
        last = self._lines[-1][1] if self._lines else 0
        if self.ended or not isinstance(mean, int | float) or step <= last:
            return None
        own = line["lr"] / self.peak_lr if self.peak_lr else band.multiplier(step)
        if line["tokens"] > band.tokens[-1]:
            self.ended = f"the band ends at step {band.steps:,}"
        elif line["tokens"] != step * band.tokens_per_step:
            self.ended = f"no band from step {step:,} on: the batch size differs"
        elif abs(own - band.multiplier(step)) > SAME_MULTIPLIER:
            self.ended = f"no band from step {step:,} on: the schedule differs"
        if self.ended:
            return None
        self._lines.append((last, step, float(mean)))
        index = int(band.tokens.searchsorted(line["tokens"]))
        loss = self._smoothed(step - band.window_tokens // band.tokens_per_step)
        if band.tokens[index] != line["tokens"] or not math.isfinite(loss):
            return None
        self.points.append(Point(step=step, loss=loss, low=float(band.low[index]), high=float(band.high[index])))
        return self.points[-1]

    def _smoothed(self, first: int) -> float:
        """Mean loss of the steps after `first`; NaN if no line begins there."""
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
        """The step since which the run has been above, below or inside the band as it is now."""
        sides = [math.copysign(1, point.excess) if point.excess else 0 for point in self.points]
        first = next((i for i in range(len(sides), 0, -1) if sides[i - 1] != sides[-1]), 0)
        return self.points[first].step if sides else 0

    def text(self) -> str:
        """Where the run is, in words; "" before the first point."""
        if not self.points:
            return self.ended
        last = self.points[-1]
        if last.excess:
            side = "above" if last.excess > 0 else "below"
            return f"{abs(last.excess):.2f} {side} the reference band since step {self.since:,}"
        return f"ended inside the reference band (step {last.step:,})" if self.ended else "inside the reference band"


def judged(band: Band, lines: Iterable[Mapping[str, Any]], *, peak_lr: float) -> Judge:
    """A judge that has taken all lines."""
    judge = Judge(band=band, peak_lr=peak_lr)
    for line in lines:
        judge.take(line)
    return judge


class BandWatch:
    """Judges a run while it trains, for the screen of `quill train`; a resumed run continues from its metrics.

    Uses only what the run writes anyway: config.toml, environment.json and metrics.jsonl.
    """

    def __init__(self, bands: Sequence[Band] | None = None) -> None:
        self._bands = bands
        self._judge: Judge | None = None
        self._advice = ""

    def start(self, run: Path) -> str:
        """Find the band of a run that is about to take its first step; return why there is none, "" if there is one."""
        record = read_run(run)
        band = find_band(record.config, record.data_fingerprint, self._bands)
        if isinstance(band, str):
            return band
        self._judge = judged(band, record.lines, peak_lr=record.config.optim.lr)
        self._advice = f": check `quill doctor {run}`"
        return ""

    def judge(self, line: Mapping[str, Any]) -> dict[str, float]:
        """The additional entry of a line to be logged: `band_excess` at the points of the band, else nothing."""
        point = self._judge.take(line) if self._judge else None
        return {"band_excess": point.excess} if point else {}

    def text(self) -> str:
        """Where the run is, for the screen; "" without a band."""
        if self._judge is None:
            return ""
        is_outside = bool(self._judge.points and self._judge.points[-1].excess)
        return self._judge.text() + (self._advice if is_outside else "")
