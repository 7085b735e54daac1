"""The run beside its recipe's reference band: the curve as the band means it, and the verdict as while it trained."""

from dataclasses import dataclass

import numpy as np

from quillgpt.evaluate.bands import Band, find_band
from quillgpt.evaluate.bands.judging import judged
from quillgpt.report.captions import Told
from quillgpt.report.curves import as_number, evenly
from quillgpt.report.figures import STRONG, Axis
from quillgpt.report.plot import Area, Kind, Line, Plot, limits_around
from quillgpt.report.subject import Subject
from quillgpt.report.wording import count, listed

NEEDED = ("step", "tokens", "lr", "mean_loss")


@dataclass(frozen=True, kw_only=True)
class Beside:
    """The runs of one band."""

    band: Band
    subjects: list[Subject]


def bands_of(told: Told) -> tuple[list[Beside], list[str]]:
    """The bands with their runs, and for the others a sentence with the reason why they have none."""
    found: dict[str, Beside] = {}
    reasons: dict[str, list[str]] = {}
    for subject, _ in told:
        band = find_band(subject.record.config, subject.told("data", "fingerprint"))
        if isinstance(band, str):
            reasons.setdefault(band, []).append(subject.label)
        else:
            found.setdefault(band.recipe, Beside(band=band, subjects=[])).subjects.append(subject)
    several = len(told) > 1
    sentences = [
        f"Reference band{' of ' + listed(labels) if several else ''}: {reason}." for reason, labels in reasons.items()
    ]
    return list(found.values()), sentences


def reference_plots(told: Told, bands: list[Beside]) -> list[Plot]:
    """A figure for each band."""
    axis = Axis("tokens", told)
    plots = [_reference(axis, beside) for beside in bands]
    return [plot for plot in plots if plot is not None]


def _reference(axis: Axis, beside: Beside) -> Plot | None:
    band, lines = beside.band, []
    for subject in beside.subjects:
        tokens, losses = axis.series(subject, subject.loss_column)
        x, y = trailing_means(tokens, losses, band.window_tokens, most=axis.share(STRONG))
        if len(x):
            lines.append(Line(run=subject.number, label=subject.label, kind=Kind.STRONG, x=x, y=y))
    if not lines:
        return None
    area = Area(run=-1, x=band.tokens, low=band.low, middle=band.mean, high=band.high)
    verdicts = [_verdict(subject, band, is_named=len(axis.subjects) > 1) for subject in beside.subjects]
    made = f"{len(band.seeds)} seeds of the recipe {band.recipe} at commit {band.commit} on {band.hardware}"
    what = f"Grey band: where {band.level:.1%} of healthy runs lie, from {made}."
    lines_are = f"Lines: mean loss of the last {count(band.window_tokens, 'tokens')}."
    return Plot(
        key=f"reference-{band.recipe}",
        title=f"Loss beside the reference band of {band.recipe}",
        x_label=axis.label,
        y_label="nats per token",
        lines=lines,
        caption=" ".join(
            [*(text[0].upper() + text[1:] if len(axis.subjects) == 1 else text for text in verdicts), lines_are, what]
        ),
        limits=limits_around(np.concatenate([band.low, band.high, *(line.y for line in lines)])),
        areas=[area],
    )


def trailing_means(tokens: np.ndarray, losses: np.ndarray, window: float, *, most: int) -> tuple[np.ndarray, ...]:
    """At no more than `most` of the points with a whole window before them: the mean over it, each line counted by the
    tokens since the line before.
    """
    if not len(tokens):
        return tokens, losses
    weights = np.diff(tokens, prepend=0.0)
    starts = np.searchsorted(tokens, tokens - window, side="right")
    whole = np.flatnonzero(tokens >= window * (1 - 1e-9))
    chosen = whole[evenly(len(whole), most)]
    means = []
    for index in chosen.tolist():
        part = slice(int(starts[index]), index + 1)
        means.append(float(losses[part] @ weights[part] / max(weights[part].sum(), 1e-9)))
    return tokens[chosen], np.array(means, dtype=np.float64)


def _verdict(subject: Subject, band: Band, *, is_named: bool) -> str:
    """Where the run is beside the band, judged as while it trained."""
    record = subject.record
    lines = [line for line in record.lines if all(as_number(line.get(name)) is not None for name in NEEDED)]
    judge = judged(band, lines, peak_lr=record.config.optim.lr)
    who, points, outside = f"{subject.label}: " if is_named else "", len(judge.points), len(judge.outside)
    if not points:
        return f"{who}not judged: {judge.ended or 'the run does not log its mean loss where the band has its points'}."
    if not outside:
        return f"{who}inside the band at all {points} points."
    return f"{who}{judge.told()}; outside at {outside} of {points} points (`quill doctor` lists likely causes)."
