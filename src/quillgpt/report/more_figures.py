"""The figures that only some runs have: bits per byte beside compressors, task scores, statistics of an attention."""

import math
import re

import numpy as np

from quillgpt.report import captions
from quillgpt.report.captions import Told, ends
from quillgpt.report.curves import as_number, evenly, sampled
from quillgpt.report.figures import HELD_OUT, Axis
from quillgpt.report.plot import Kind, Level, Line, Plot, limits_around
from quillgpt.report.scores import Published, Score, all_published, chance_of, published_for
from quillgpt.report.subject import Subject
from quillgpt.report.tables import common_compressors
from quillgpt.report.wording import listed, one_line, with_error

MOST_FIGURES = 12  # of one kind
MOST_LAYERS = 24  # lines of a figure, over all runs
LAYER_POINTS = 1_200  # over all of them
MEANINGS = {
    "kernel_x_mean": "x, mean over the pairs",
    "kernel_x_max": "x, largest",
    "kernel_x_above_n": "share of the pairs with x above N",
    "kernel_x_above_2n": "share of the pairs with x above 2N, where the polynomial grows",
    "kernel_x_underflows": "share of the pairs whose weight underflows",
    "score_mean": "size of the scores, mean over the pairs",
    "score_max": "size of the scores, largest",
    "weight_sum_mean": "sum of a position's weights, mean",
    "weight_sum_max": "sum of a position's weights, largest",
}


def bits_plot(told: Told) -> Plot | None:
    """Held-out bits per byte, beside what compressors make of the same text."""
    axis = Axis("tokens", told)
    lines = []
    for subject in axis.subjects:
        x, y = axis.series(subject, "held_out_bits_per_byte")
        _, losses, errors = axis.with_errors(subject, "held_out_loss", "held_out_standard_error")
        share = errors / np.maximum(losses, 1e-9) if len(errors) == len(y) else np.zeros(len(y))
        x, y, error = sampled(x, y, share * y, most=axis.share(HELD_OUT))
        if len(x):
            lines.append(Line(run=subject.number, label=subject.label, kind=Kind.POINTS, x=x, y=y, error=error))
    compressors = common_compressors(axis.subjects)
    if not lines:
        return None
    values = np.concatenate([line.y for line in lines])
    notes = [ends(told, captions.final_bits)]
    if compressors:
        notes.append(f"The same text: {listed([f'{name} {value:.3f}' for name, value in compressors.items()])}.")
    return Plot(
        key="bits-per-byte",
        title="Held-out bits per byte",
        x_label=axis.label,
        y_label="bits per byte",
        lines=lines,
        caption=" ".join(notes),
        limits=limits_around(values, include=tuple(compressors.values())),
        levels=[Level(value=value, label=name) for name, value in compressors.items()],
    )


def score_plots(told: Told) -> list[Plot]:
    """One figure for each metric of a task with several values of a run, or with published ones beside one."""
    grouped: dict[str, list[tuple[Subject, Score]]] = {}
    for subject, _ in told:
        for score in subject.scores:
            known = sum(math.isfinite(point.tokens) for point in score.points)
            if known > 1 or (known and all_published(score.task, score.metric)):
                grouped.setdefault(score.name, []).append((subject, score))
    parameters = max((facts.parameters for _, facts in told), default=0)
    chosen = list(grouped.items())[:MOST_FIGURES]
    return [_score(name, entries, parameters, len(told)) for name, entries in chosen]


def _score(name: str, entries: list[tuple[Subject, Score]], parameters: int, runs: int) -> Plot:
    first = entries[0][1]
    lines, notes = [], []
    for subject, score in entries:
        columns = np.array([(point.tokens, point.value, point.error) for point in score.points], dtype=np.float64)
        columns = columns[np.isfinite(columns[:, :2]).all(axis=1)]
        error = np.nan_to_num(columns[:, 2], nan=0.0, posinf=0.0)
        x, y, error = sampled(columns[:, 0], columns[:, 1], error, most=max(10, HELD_OUT // runs))
        lines.append(Line(run=subject.number, label=subject.label, kind=Kind.POINTS, x=x, y=y, error=error))
        last = score.points[-1]
        items = f" on {last.items:,} items" if last.items else ""
        notes.append(f"{subject.label}: {with_error(last.value, last.error)}{items}" if runs > 1 else "")
        notes[-1] = notes[-1] or f"{with_error(last.value, last.error)}{items} at the end"
    published = published_for(first.task, first.metric, parameters)
    chance = chance_of(first.task) if first.metric.startswith("accuracy") else None
    levels = [Level(value=entry.value, label=entry.name) for entry in published]
    levels += [Level(value=chance, label="guessing")] if chance is not None else []
    values = np.concatenate([line.y + sign * line.error for line in lines for sign in (-1, 1)])
    return Plot(
        key=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "score",
        title=name,
        x_label="tokens",
        y_label=first.metric_name,
        lines=lines,
        caption=" ".join([f"{'; '.join(notes[:4])}.", published_note(first.task, published)]).strip(),
        limits=limits_around(values, include=tuple(level.value for level in levels)),
        levels=levels,
    )


def published_note(task: str, published: list[Published]) -> str:
    """Whose scores the lines are, and in which style they and ours were made."""
    if not published:
        return ""
    sources: dict[str, list[str]] = {}
    for entry in published:
        sources.setdefault(entry.source, []).append(f"{entry.name} {entry.value:.3f}")
    said = "; ".join(f"{listed(names)} ({source})" for source, names in sources.items())
    style = f", scored in {task.rpartition('-')[2]} style like these" if task.startswith("hellaswag-") else ""
    return f"Published{style}: {said}."


def statistics_plots(told: Told) -> list[Plot]:
    """What a run tells of every layer: a figure for each statistic, a line for each layer."""
    names: dict[str, None] = {}
    for subject, _ in told:
        names |= dict.fromkeys(name for line in subject.record.lines for name, value in line.items() if _is_list(value))
    plots = [_statistic(name, told) for name in sorted(names)[:MOST_FIGURES]]
    return [plot for plot in plots if plot is not None]


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _statistic(name: str, told: Told) -> Plot | None:
    lines, notes = [], []
    for subject, _ in told:
        rows = [(line.get("tokens"), line[name]) for line in subject.record.lines if _is_list(line.get(name))]
        layers = min((len(values) for _, values in rows), default=0)
        most = max(1, MOST_LAYERS // len(told))
        for layer in evenly(layers, most).tolist():
            pairs = [(as_number(x), as_number(values[layer])) for x, values in rows]
            known = [pair for pair in pairs if None not in pair]
            x, y = np.array(known, dtype=np.float64).reshape(-1, 2).T
            x, y = sampled(x, y, most=max(10, LAYER_POINTS // (len(told) * min(layers, most))))
            if len(x):
                label = f"{subject.label}, layer {layer}"
                lines.append(Line(run=subject.number, label=label, kind=Kind.LAYER, x=x, y=y))
        ending = [float(line.y[-1]) for line in lines if line.run == subject.number]
        if ending:
            who = f"{subject.label}: " if len(told) > 1 else ""
            notes.append(f"{who}{min(ending):.3g} to {max(ending):.3g} over the layers at the end")
    if not lines:
        return None
    title = MEANINGS.get(name, one_line(name.replace("_", " "), longest=60))
    return Plot(
        key=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "statistic",
        title=title[0].upper() + title[1:],
        x_label="tokens",
        y_label=name.replace("_", " ") if name in MEANINGS else title,
        lines=lines,
        caption=f"{'; '.join(notes[:4])}.",
        limits=limits_around(np.concatenate([line.y for line in lines])),
    )
