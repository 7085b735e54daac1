"""The figures of a report: which plots there are for these runs, with their captions.

Every line is thinned before it is drawn, so that a figure has at most `MOST_POINTS` points however long the runs are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from quillgpt.ascii_plot import tick
from quillgpt.lab.bands import find_band, judged
from quillgpt.lab.bands.band import Band
from quillgpt.lab.report.plot import Area, Kind, Line, Plot
from quillgpt.lab.report.runs import ReportedRun, Validation
from quillgpt.lab.report.scores import PublishedScore, Score, all_published, chance_of, published_for
from quillgpt.lab.report.series import (
    as_number,
    evenly,
    finite,
    limits_around,
    sampled,
    smoothed,
    smoothing_window,
    spans,
    trailing_means,
)
from quillgpt.lab.report.tables import common_compressors
from quillgpt.lab.report.text import count, duration, listed, number, one_line, size, trouble_of, with_error
from quillgpt.training.attention_stats import MEANINGS

MOST_POINTS = 6_000
RAW, SPANS, STRONG, VALIDATION, MARKS = 1_600, 800, 1_200, 240, 200  # of these, over all runs
FEW_RUNS = 4  # with more runs, no single steps are drawn and captions name only this many
STEEP = 0.08  # share of the x axis at whose beginning a loss may leave the frame
UNITS = ((172_800.0, 86_400.0, "days"), (7_200.0, 3_600.0, "hours"), (180.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
MOST_FIGURES = 12  # of one kind
MOST_LAYERS = 24  # lines of a figure, over all runs
LAYER_POINTS = 1_200  # over all of them
NEEDED = ("step", "tokens", "lr", "train_loss_mean")  # to judge a run by a reference band
Runs = Sequence[ReportedRun]


class Axis:
    """The x axis of the runs: tokens, or the training time in the unit that fits the longest run."""

    def __init__(self, column: str, runs: Runs) -> None:
        self.column, self.runs = column, runs
        self.label, self._unit = "tokens", 1.0
        if column == "elapsed_seconds":
            longest = max((run.seconds or 0.0 for run in runs), default=0.0)
            self._unit, name = next((unit, name) for least, unit, name in UNITS if longest >= least)
            self.label = f"{name} of training"

    def share(self, points: int) -> int:
        """How many of that many points are for one run."""
        return max(10, points // len(self.runs))

    def series(self, run: ReportedRun, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The points of a column of metrics that can be drawn, x and y (n,)."""
        x, y = finite(*run.series(name, self.column))
        return x / self._unit, y

    def validations(self, value_of: Callable[[Validation], tuple[float | None, float | None]]) -> list[Line]:
        """A line of points with errors for each run; `value_of` returns a value and its error."""
        found = []
        for run in self.runs:
            entries = [(getattr(entry, self.column), *value_of(entry)) for entry in run.validations]
            entries = [(x / self._unit, y, error or 0.0) for x, y, error in entries if x is not None and y is not None]
            found += _line_of_points(run, entries, most=self.share(VALIDATION))
        return found

    def marks(self, is_marked: Callable[[dict], bool]) -> dict[int, np.ndarray]:
        """The places of the lines of metrics that are marked, by the number of the run."""
        found = {}
        for run in self.runs:
            places = [as_number(line.get(self.column)) for line in run.record.lines if is_marked(line)]
            x = np.array([place for place in places if place is not None], dtype=np.float64) / self._unit
            if len(x):
                found[run.number] = sampled(x, most=self.share(MARKS))[0]
        return found


def main_plots(runs: Runs) -> list[Plot]:
    """Loss over tokens and over time, learning rate, gradient norm, throughput, memory: those that have data."""
    tokens, seconds = Axis("tokens", runs), Axis("elapsed_seconds", runs)
    of_tokens = [_learning_rate, _gradient_norm, _throughput, _peak_memory, _bits]
    plots = [_loss(tokens), _loss(seconds), *(plot(tokens) for plot in of_tokens)]
    return [plot for plot in plots if plot is not None]


def ends(runs: Runs, describe: Callable[[ReportedRun], str]) -> str:
    """A caption with a number for each run, at most `FEW_RUNS` of them."""
    described = [(run.label, text) for run in runs if (text := describe(run))]
    if not described:
        return ""
    if len(runs) == 1:
        return f"{described[0][1][0].upper()}{described[0][1][1:]}."
    rest = len(described) - FEW_RUNS
    text = "; ".join(f"{label}: {text}" for label, text in described[:FEW_RUNS])
    return f"{text}; and {rest} more in the table." if rest > 0 else f"{text}."


def curves(axis: Axis, column: str) -> tuple[list[Line], list[Area]]:
    """The smoothed column of every run and, if the runs are few, the logged lines, or their range if they are many."""
    lines: list[Line] = []
    areas: list[Area] = []
    for run in axis.runs:
        x, y = axis.series(run, column)
        if not len(x):
            continue
        if len(axis.runs) <= FEW_RUNS and smoothing_window(len(y)) > 1:
            if len(y) <= axis.share(RAW):
                lines.append(_line(run, Kind.FAINT, x, y))
            else:
                x_of_span, low, high = spans(x, y, most=axis.share(SPANS))
                areas.append(Area(run=run.number, x=x_of_span, low=low, high=high))
        if column == "train_loss" and run.loss_column != column:
            x, y = axis.series(run, run.loss_column)
            x = x - np.diff(x, prepend=0.0) / 2  # a mean over an interval belongs to its middle
        lines.append(_line(run, Kind.STRONG, *smoothed(x, y, most=axis.share(STRONG))))
    return lines, areas


def _line(run: ReportedRun, kind: Kind, x: np.ndarray, y: np.ndarray, covers: int = 0) -> Line:
    return Line(run=run.number, label=run.label, kind=kind, x=x, y=y, covers=covers)


def _line_of_points(run: ReportedRun, entries: Sequence[tuple[float, float, float]], *, most: int) -> list[Line]:
    """A line of (x, y, error), at most `most` of them; none without points."""
    x, y, error = sampled(*np.array(entries, dtype=np.float64).reshape(-1, 3).T, most=most)
    error = np.maximum(0.0, np.nan_to_num(error, nan=0.0, posinf=0.0))
    return [Line(run=run.number, label=run.label, kind=Kind.POINTS, x=x, y=y, error=error)] if len(x) else []


def _loss(axis: Axis) -> Plot | None:
    lines, areas = curves(axis, "train_loss")
    lines += axis.validations(lambda entry: (entry.loss, entry.error))
    if not lines:
        return None
    limits, above = loss_limits(lines, areas)
    is_main = axis.column == "tokens"
    marks = axis.marks(lambda line: bool(line.get("skipped")) or _is_not_finite(line.get("train_loss")))

    def final(run: ReportedRun) -> str:
        if not is_main:
            return f"{duration(run.seconds)} of training" if run.seconds is not None else ""
        parts = [f"training {number(run.last_loss, 4)}"] if run.last_loss is not None else []
        return ", ".join([*parts, f"validation {run.last.text}"] if run.last else parts)

    notes = [ends(axis.runs, final)]
    if above:
        notes.append(f"The curves start above the frame, until {tick(float(f'{above:.2g}'))} {axis.label}.")
    if marks:
        notes.append(f"Crosses at the bottom: {ends(axis.runs, trouble_of)}")
    return Plot(
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


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def loss_limits(lines: list[Line], areas: list[Area]) -> tuple[tuple[float, float], float]:
    """The y limits of a loss without its first steep fall, and the x until which the curves are above them, or 0.

    They contain all but the lowest and highest 2 % of the single lines, so that a spike does not flatten the rest.
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


def _learning_rate(axis: Axis) -> Plot | None:
    lines: list[Line] = []
    for run in axis.runs:
        x, y = sampled(*axis.series(run, "lr"), most=axis.share(STRONG))
        if len(x):
            covers = sum(np.array_equal(line.x, x) and np.array_equal(line.y, y) for line in lines)
            lines.append(_line(run, Kind.STRONG, x, y, covers))
    if not lines:
        return None

    def final(run: ReportedRun) -> str:
        return f"at most {number(run.lr_range[0])}, {number(run.lr_range[1])} at the end" if run.lr_range else ""

    return Plot(
        title="Learning rate",
        x_label=axis.label,
        y_label="learning rate",
        lines=lines,
        caption=ends(axis.runs, final),
        limits=(0.0, 1.06 * max(float(line.y.max()) for line in lines) or 1.0),
    )


def _gradient_norm(axis: Axis) -> Plot | None:
    lines, areas = curves(axis, "grad_norm")
    if not lines:
        return None
    clips = sorted({run.clip for run in axis.runs if run.clip})
    values = np.concatenate([*(line.y for line in lines), *(area.high for area in areas)])
    positive = values[values > 0]
    is_logarithmic = bool(len(positive)) and float(positive.max()) > 30 * float(np.median(positive))
    marks = axis.marks(lambda line: bool(line.get("skipped")))

    def typical(run: ReportedRun) -> str:
        if run.median_norm is None:
            return ""
        share = run.clipped_share
        clipped = "not clipped" if share is None else f"clipped on {share:.0%} of the logged steps"
        return f"median {number(run.median_norm)}, {clipped}"

    notes = [ends(axis.runs, typical)]
    notes += [f"Crosses at the bottom: {ends(axis.runs, trouble_of)}"] if marks else []
    low, high = limits_around(values, include=tuple(clips), is_logarithmic=is_logarithmic)
    return Plot(
        title="Gradient norm",
        x_label=axis.label,
        y_label="gradient norm" + (", logarithmic" if is_logarithmic else ""),
        lines=lines,
        caption=" ".join(notes),
        limits=(low if is_logarithmic else 0.0, high),
        levels={f"clipped at {clip:g}": clip for clip in clips},
        areas=areas,
        marks=marks,
        is_logarithmic=is_logarithmic,
    )


def _throughput(axis: Axis) -> Plot | None:
    def median(run: ReportedRun) -> str:
        return f"median {number(run.tokens_per_second)} tokens/s" if run.tokens_per_second is not None else ""

    return _amount(axis, "tokens_per_second", "Throughput", "tokens per second", median)


def _peak_memory(axis: Axis) -> Plot | None:
    def largest(run: ReportedRun) -> str:
        return f"{size(run.memory_bytes)} at its largest" if run.memory_bytes is not None else ""

    name, unit = ("MB", 1e6) if max(run.memory_bytes or 0.0 for run in axis.runs) < 1e9 else ("GB", 1e9)
    return _amount(axis, "memory_bytes", "Peak memory", name, largest, unit)


def _amount(
    axis: Axis, column: str, title: str, y_label: str, describe: Callable[[ReportedRun], str], unit: float = 1.0
) -> Plot | None:
    lines, areas = curves(axis, column)
    if not lines:
        return None
    scaled = [replace(line, y=line.y / unit) for line in lines]
    return Plot(
        title=title,
        x_label=axis.label,
        y_label=y_label,
        lines=scaled,
        caption=ends(axis.runs, describe),
        limits=(0.0, 1.15 * max(float(line.y.max()) for line in scaled if line.kind is Kind.STRONG) or 1.0),
        areas=[replace(area, low=area.low / unit, high=area.high / unit) for area in areas],
    )


def _bits(axis: Axis) -> Plot | None:
    lines = axis.validations(lambda entry: (entry.bits_per_byte, entry.bits_error))
    if not lines:
        return None
    compressors = common_compressors(axis.runs)
    notes = [ends(axis.runs, lambda run: f"{run.last.bits_text} at the end" if run.last and run.last.bits_text else "")]
    if compressors:
        notes.append(f"The same text: {listed([f'{name} {value:.3f}' for name, value in compressors.items()])}.")
    return Plot(
        key="bits-per-byte",
        title="Validation bits per byte",
        x_label=axis.label,
        y_label="bits per byte",
        lines=lines,
        caption=" ".join(notes),
        limits=limits_around(np.concatenate([line.y for line in lines]), include=tuple(compressors.values())),
        levels=compressors,
    )


def band_plots(runs: Runs) -> tuple[list[Plot], list[str]]:
    """A plot for each reference band of the runs, and a sentence for each reason why runs have none."""
    found: dict[str, tuple[Band, list[ReportedRun]]] = {}
    reasons: dict[str, list[str]] = {}
    for run in runs:
        band = find_band(run.record.config, run.text("data", "fingerprint"))
        if isinstance(band, str):
            reasons.setdefault(band, []).append(run.label)
        else:
            found.setdefault(band.recipe, (band, []))[1].append(run)
    axis = Axis("tokens", runs)
    plots = [_band_plot(axis, band, of_band) for band, of_band in found.values()]
    several = len(runs) > 1
    sentences = [
        f"Reference band{' of ' + listed(labels) if several else ''}: {reason}." for reason, labels in reasons.items()
    ]
    return [plot for plot in plots if plot is not None], sentences


def _band_plot(axis: Axis, band: Band, runs: Runs) -> Plot | None:
    lines = []
    for run in runs:
        tokens, losses = axis.series(run, run.loss_column)
        x, y = trailing_means(tokens, losses, band.window_tokens, most=axis.share(STRONG))
        if len(x):
            lines.append(_line(run, Kind.STRONG, x, y))
    if not lines:
        return None
    verdicts = [f"{run.label}: {_verdict(run, band)}" for run in runs]
    if len(axis.runs) == 1:
        verdict = _verdict(runs[0], band)
        verdicts = [f"{verdict[0].upper()}{verdict[1:]}"]
    made = f"{len(band.seeds)} seeds of the recipe {band.recipe} at commit {band.commit} on {band.hardware}"
    notes = [
        *verdicts,
        f"Lines: mean loss of the last {count(band.window_tokens, 'tokens')}.",
        f"Grey band: {band.level:.1%} of healthy runs are inside, from {made}.",
    ]
    return Plot(
        key=f"reference-{band.recipe}",
        title=f"Loss and the reference band of {band.recipe}",
        x_label=axis.label,
        y_label="nats per token",
        lines=lines,
        caption=" ".join(notes),
        limits=limits_around(np.concatenate([band.low, band.high, *(line.y for line in lines)])),
        areas=[Area(run=-1, x=band.tokens, low=band.low, middle=band.mean, high=band.high)],
    )


def _verdict(run: ReportedRun, band: Band) -> str:
    lines = [line for line in run.record.lines if all(as_number(line.get(name)) is not None for name in NEEDED)]
    judge = judged(band, lines, peak_lr=run.record.config.optim.lr)
    points, outside = len(judge.points), len(judge.outside)
    if not points:
        return f"not judged: {judge.ended or 'the run does not log its mean loss at the points of the band'}."
    if not outside:
        return f"inside the band at all {points} points."
    return f"{judge.text()}; outside at {outside} of {points} points (`quill doctor` lists likely causes)."


def score_plots(runs: Runs) -> list[Plot]:
    """A plot for each task metric that has several values in a run, or one value and published scores."""
    grouped: dict[str, list[tuple[ReportedRun, Score]]] = {}
    for run in runs:
        for score in run.scores:
            known = sum(math.isfinite(point.tokens) for point in score.points)
            if known > 1 or (known and all_published(score.task, score.metric)):
                grouped.setdefault(score.name, []).append((run, score))
    parameters = max(run.parameters for run in runs)
    return [_score(name, grouped[name], parameters, len(runs)) for name in list(grouped)[:MOST_FIGURES]]


def _score(name: str, entries: list[tuple[ReportedRun, Score]], parameters: int, runs: int) -> Plot:
    first = entries[0][1]
    lines, notes = [], []
    for run, score in entries:
        points = [(point.tokens, point.value, point.error) for point in score.points if math.isfinite(point.tokens)]
        lines += _line_of_points(run, points, most=max(10, VALIDATION // runs))
        last = score.points[-1]
        value = with_error(last.value, last.error) + (f" on {last.items:,} items" if last.items else "")
        notes.append(f"{run.label}: {value}" if runs > 1 else f"{value} at the end")
    published = published_for(first.task, first.metric, parameters)
    chance = chance_of(first.task) if first.metric.startswith("accuracy") else None
    levels = {entry.name: entry.value for entry in published} | ({"guessing": chance} if chance is not None else {})
    values = np.concatenate([line.y + sign * line.error for line in lines for sign in (-1, 1)])
    return Plot(
        title=name,
        x_label="tokens",
        y_label=first.metric_name,
        lines=lines,
        caption=" ".join([f"{'; '.join(notes[:4])}.", published_note(first.task, published)]).strip(),
        limits=limits_around(values, include=tuple(levels.values())),
        levels=levels,
    )


def published_note(task: str, published: list[PublishedScore]) -> str:
    """The published scores with their sources and their style."""
    if not published:
        return ""
    sources: dict[str, list[str]] = {}
    for entry in published:
        sources.setdefault(entry.source, []).append(f"{entry.name} {entry.value:.3f}")
    scores = "; ".join(f"{listed(names)} ({source})" for source, names in sources.items())
    style = f", scored in the same {task.rpartition('-')[2]} style" if task.startswith("hellaswag-") else ""
    return f"Published{style}: {scores}."


def statistics_plots(runs: Runs) -> list[Plot]:
    """A plot for each statistic that has a value for every layer, a line for each layer."""
    names = {name for run in runs for line in run.record.lines for name, value in line.items() if _is_list(value)}
    plots = [_statistic(name, runs) for name in sorted(names)[:MOST_FIGURES]]
    return [plot for plot in plots if plot is not None]


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _statistic(name: str, runs: Runs) -> Plot | None:
    lines, notes = [], []
    for run in runs:
        rows = [(line.get("tokens"), line[name]) for line in run.record.lines if _is_list(line.get(name))]
        layers = min((len(values) for _, values in rows), default=0)
        most = max(1, MOST_LAYERS // len(runs))
        for layer in evenly(layers, most).tolist():
            pairs = [(as_number(x), as_number(values[layer])) for x, values in rows]
            known = [pair for pair in pairs if None not in pair]
            x, y = np.array(known, dtype=np.float64).reshape(-1, 2).T
            x, y = sampled(x, y, most=max(10, LAYER_POINTS // (len(runs) * min(layers, most))))
            if len(x):
                label = f"{run.label}, layer {layer}"
                lines.append(Line(run=run.number, label=label, kind=Kind.LAYER, x=x, y=y))
        last = [float(line.y[-1]) for line in lines if line.run == run.number]
        if last:
            who = f"{run.label}: " if len(runs) > 1 else ""
            notes.append(f"{who}{min(last):.3g} to {max(last):.3g} over the layers at the end")
    if not lines:
        return None
    title = MEANINGS.get(name, one_line(name.replace("_", " "), longest=60))
    return Plot(
        key=name,
        title=title[0].upper() + title[1:],
        x_label="tokens",
        y_label=name.replace("_", " ") if name in MEANINGS else title,
        lines=lines,
        caption=f"{'; '.join(notes[:4])}.",
        limits=limits_around(np.concatenate([line.y for line in lines])),
    )
