"""The figures of a report: which there are for these runs, and what each says in words.

Every line is thinned out before it is drawn, so that a figure has at most `MOST_POINTS` points however long the runs.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from quillgpt.report import captions
from quillgpt.report.captions import Told, ends
from quillgpt.report.curves import as_number, finite, sampled, smoothed, smoothing_window, spans
from quillgpt.report.facts import Facts
from quillgpt.report.plot import Area, Kind, Level, Line, Marks, Plot, limits_around
from quillgpt.report.subject import Subject
from quillgpt.report.wording import compact

MOST_POINTS = 6_000
RAW, SPANS, STRONG, HELD_OUT, RUG = 1_600, 800, 1_200, 240, 200  # of these, over all runs
FEW_RUNS = 4  # more runs than these show no single steps
STEEP = 0.08  # share of the x axis at whose beginning a loss may leave the frame
UNITS = ((172_800.0, 86_400.0, "days"), (7_200.0, 3_600.0, "hours"), (180.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


class Axis:
    """What the curves are drawn against: tokens, or the time of training in the unit that fits the longest run."""

    def __init__(self, column: str, told: Told) -> None:
        self.column = column
        self.subjects = [subject for subject, _ in told]
        self.label, self._unit = "tokens", 1.0
        if column == "elapsed_seconds":
            longest = max((facts.seconds or 0.0 for _, facts in told), default=0.0)
            self._unit, name = next((unit, name) for least, unit, name in UNITS if longest >= least)
            self.label = f"{name} of training"

    def share(self, points: int) -> int:
        """How many of so many points are for one run."""
        return max(10, points // len(self.subjects))

    def series(self, subject: Subject, name: str) -> tuple[np.ndarray, np.ndarray]:
        """What can be drawn of a column over this axis."""
        x, y = finite(*subject.series(name, self.column))
        return x / self._unit, y

    def with_errors(self, subject: Subject, name: str, error: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same with the standard errors from another column; 0 where there are none."""
        x, y = self.series(subject, name)
        errors = dict(zip(*self.series(subject, error), strict=True))
        return x, y, np.array([max(0.0, errors.get(place, 0.0)) for place in x], dtype=np.float64)

    def marks(self, label: str, is_meant: Callable[[dict], bool]) -> list[Marks]:
        """Where something happened to the runs."""
        found = []
        for subject in self.subjects:
            places = [as_number(line.get(self.column)) for line in subject.record.lines if is_meant(line)]
            x = np.array([place for place in places if place is not None], dtype=np.float64) / self._unit
            if len(x):
                found.append(Marks(run=subject.number, label=label, x=sampled(x, most=self.share(RUG))[0]))
        return found


def main_plots(told: Told) -> list[Plot]:
    """Loss over tokens and over time, learning rate, gradient norm, throughput, memory: those with anything to show."""
    tokens, seconds = Axis("tokens", told), Axis("elapsed_seconds", told)
    plots = [
        _loss(tokens, told),
        _loss(seconds, told),
        _rate(tokens, told),
        _gradient(tokens, told),
        _amount(tokens, told, "tokens_per_second", "Throughput", "tokens per second", captions.speed),
        _amount(tokens, told, "memory_bytes", "Peak memory", *_memory_unit(told)),
    ]
    return [plot for plot in plots if plot is not None]


def curves(axis: Axis, column: str) -> tuple[list[Line], list[Area]]:
    """A column of every run: its mean strong and, if the runs are few, its single lines faint.

    Single lines that are too many to be drawn become the area that they fill.
    """
    lines: list[Line] = []
    areas: list[Area] = []
    for subject in axis.subjects:
        x, y = axis.series(subject, column)
        if not len(x):
            continue
        if len(axis.subjects) <= FEW_RUNS and smoothing_window(len(y)) > 1:
            if len(y) <= axis.share(RAW):
                lines.append(_line(subject, Kind.FAINT, x, y))
            else:
                x_of_span, low, high = spans(x, y, most=axis.share(SPANS))
                areas.append(Area(run=subject.number, x=x_of_span, low=low, high=high))
        if column == "loss" and subject.loss_column != column:
            x, y = axis.series(subject, subject.loss_column)
            x = x - np.diff(x, prepend=0.0) / 2  # a mean over an interval belongs to its middle
        lines.append(_line(subject, Kind.STRONG, *smoothed(x, y, most=axis.share(STRONG))))
    return lines, areas


def _line(subject: Subject, kind: Kind, x: np.ndarray, y: np.ndarray) -> Line:
    return Line(run=subject.number, label=subject.label, kind=kind, x=x, y=y)


def _loss(axis: Axis, told: Told) -> Plot | None:
    lines, areas = curves(axis, "loss")
    for subject in axis.subjects:
        columns = axis.with_errors(subject, "held_out_loss", "held_out_standard_error")
        x, y, error = sampled(*columns, most=axis.share(HELD_OUT))
        if len(x):
            lines.append(Line(run=subject.number, label=subject.label, kind=Kind.POINTS, x=x, y=y, error=error))
    if not lines:
        return None
    limits, above = loss_limits(lines, areas)
    is_main = axis.column == "tokens"
    marks = axis.marks("not applied", lambda line: bool(line.get("skipped")) or _is_no_number(line))
    notes = [ends(told, captions.final_loss if is_main else captions.time)]
    notes += (
        [f"The curves begin above the frame, until {compact(float(f'{above:.2g}'))} {axis.label}."] if above else []
    )
    notes += [f"Crosses at the foot: {ends(told, captions.skipped)}"] if marks else []
    return Plot(
        key="loss" if is_main else "loss-by-time",
        title="Loss" if is_main else "Loss by time",
        x_label=axis.label,
        y_label="nats per token",
        lines=lines,
        caption=" ".join(notes),
        limits=limits,
        areas=areas,
        marks=marks,
        is_main=is_main,
    )


def _is_no_number(line: dict) -> bool:
    return isinstance(line.get("loss"), float) and not np.isfinite(line["loss"])


def loss_limits(lines: list[Line], areas: list[Area]) -> tuple[tuple[float, float], float]:
    """The y axis of a loss, without its first steep fall; and how far along x the curves are above it, or 0.

    Of the single lines it holds all but the lowest and highest few, so that a spike does not flatten the rest.
    """
    firm = [line for line in lines if line.kind is not Kind.FAINT]
    single = [(line.x, line.y) for line in lines if line.kind is Kind.FAINT]
    single += [(area.x, edge) for area in areas for edge in (area.low, area.high)]
    everything = np.concatenate([line.y for line in firm])
    far = max(float(line.x.max()) for line in lines) * STEEP
    usual = [np.quantile(y[x >= far], (0.02, 0.98)) for x, y in single if (x >= far).any()]
    late = np.concatenate([*(line.y[line.x >= far] for line in firm), *usual])
    low, high = limits_around(late if len(late) else everything)
    if everything.max() <= high + 0.3 * (high - low):
        return limits_around(np.concatenate([everything, *usual])), 0.0
    return (low, high), max(float(line.x[line.y > high].max()) for line in firm if (line.y > high).any())


def _rate(axis: Axis, told: Told) -> Plot | None:
    lines: list[Line] = []
    for subject in axis.subjects:
        x, y = sampled(*axis.series(subject, "lr"), most=axis.share(STRONG))
        covers = sum(np.array_equal(line.x, x) and np.array_equal(line.y, y) for line in lines)
        if len(x):
            strong = Kind.STRONG
            lines.append(Line(run=subject.number, label=subject.label, kind=strong, x=x, y=y, covers=covers))
    if not lines:
        return None
    return Plot(
        key="learning-rate",
        title="Learning rate",
        x_label=axis.label,
        y_label="learning rate",
        lines=lines,
        caption=ends(told, captions.rates),
        limits=(0.0, 1.06 * max(float(line.y.max()) for line in lines) or 1.0),
    )


def _gradient(axis: Axis, told: Told) -> Plot | None:
    lines, areas = curves(axis, "gradient_norm")
    if not lines:
        return None
    clips = sorted({facts.clip for _, facts in told if facts.clip})
    values = np.concatenate([*(line.y for line in lines), *(area.high for area in areas)])
    positive = values[values > 0]
    is_logarithmic = bool(len(positive)) and float(positive.max()) > 30 * float(np.median(positive))
    marks = axis.marks("not applied", lambda line: bool(line.get("skipped")))
    notes = [ends(told, captions.norms)]
    notes += [f"Crosses at the foot: {ends(told, captions.skipped)}"] if marks else []
    low, high = limits_around(values, include=tuple(clips), is_logarithmic=is_logarithmic)
    return Plot(
        key="gradient-norm",
        title="Gradient norm",
        x_label=axis.label,
        y_label="gradient norm" + (", logarithmic" if is_logarithmic else ""),
        lines=lines,
        caption=" ".join(notes),
        limits=(low if is_logarithmic else 0.0, high),
        levels=[Level(value=clip, label=f"clipped at {clip:g}") for clip in clips],
        areas=areas,
        marks=marks,
        is_logarithmic=is_logarithmic,
    )


def _memory_unit(told: Told) -> tuple[str, Callable[[Facts], str], float]:
    is_small = max(facts.memory_bytes or 0.0 for _, facts in told) < 1e9
    return ("MB", captions.memory, 1e6) if is_small else ("GB", captions.memory, 1e9)


def _amount(
    axis: Axis, told: Told, column: str, title: str, y_label: str, say: Callable[[Facts], str], unit: float = 1.0
) -> Plot | None:
    lines, areas = curves(axis, column)
    if not lines:
        return None
    scaled = [replace(line, y=line.y / unit) for line in lines]
    return Plot(
        key=title.lower().replace(" ", "-"),
        title=title,
        x_label=axis.label,
        y_label=y_label,
        lines=scaled,
        caption=ends(told, say),
        limits=(0.0, 1.15 * max(float(line.y.max()) for line in scaled if line.kind is Kind.STRONG) or 1.0),
        areas=[replace(area, low=area.low / unit, high=area.high / unit) for area in areas],
    )
