"""A reference band: its file, the runs it applies to, and how it is made from the losses of several seeds."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from quillgpt.config import OptimConfig, RunConfig, Scalar, flatten, group_of
from quillgpt.errors import DataError, import_optional
from quillgpt.model.attention import ATTENTION
from quillgpt.optim.schedules import learning_rate

FORMAT, VERSION = "quillgpt reference band", 1
POINTS = ("mean", "spread", "low", "high", "lr_multiplier", "grad_norm", "gradient_norm_high")
SOFTMAX = {name for name, entry in ATTENTION.items() if entry.is_softmax}  # they compute the same function
MOST_DIFFERENCES = 4  # a run with more settings changed is of another recipe
LEVEL = 0.999
FEWEST_SEEDS, FEWEST_LINES = 8, 4  # FEWEST_LINES: of a window
POOLED = 4  # points on each side whose variances are pooled, about a window


@dataclass(frozen=True, kw_only=True)
class Band:
    """The interval of the smoothed training loss of a healthy run, in nats per token, at each of n points.

    `tokens`: (n,) the points. The loss of one more run of these settings is between `low` and `high` with probability
    `level` at each; `mean` is that of the band's runs and `spread` their pooled standard deviation. The smoothed loss
    is the mean of all steps in the `window_tokens` up to the point.

    `settings` and `fingerprint` define the runs it applies to; `optim` and `schedule_steps` are those of its own runs.
    `scatter` is the deviation of the mean loss of `log_every` steps from its trend, `grad_norm` the norm before
    clipping; `scatter_high` and `gradient_norm_high` are the upper ends of their intervals for one more run.
    """

    recipe: str
    settings: dict[str, Scalar]
    fingerprint: str
    data: str
    optim: dict[str, Scalar]
    schedule_steps: int
    tokens_per_step: int
    log_every: int
    window_tokens: int
    seeds: list[int]
    level: float
    commit: str
    hardware: str
    made_with: dict[str, str]
    scatter: float
    scatter_high: float
    tokens: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    low: np.ndarray
    high: np.ndarray
    lr_multiplier: np.ndarray
    grad_norm: np.ndarray
    gradient_norm_high: np.ndarray

    @property
    def steps(self) -> int:
        """The last step of the band."""
        return int(self.tokens[-1]) // self.tokens_per_step

    def multiplier(self, step: int) -> float:
        """Learning rate of the band's runs at a step, counted from 1, divided by its peak."""
        settings = OptimConfig(**self.optim)  # type: ignore[arg-type]
        return learning_rate(step - 1, self.schedule_steps, settings) / settings.lr

    def to_json(self) -> dict[str, Any]:
        """The content of the band's file."""
        content: dict[str, Any] = {"format": FORMAT, "version": VERSION} | dataclasses.asdict(self)
        content["tokens"] = [int(value) for value in self.tokens]
        return content | {name: [round(float(value), 5) for value in content[name]] for name in POINTS}


def read_band(path: Path) -> Band:
    """Read a band from its file; a missing or damaged one is a `DataError`."""
    remedy = "python benchmarks/reference_bands.py makes one"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content.pop("format"), content.pop("version")) != (FORMAT, VERSION):
            raise ValueError(f"expected {FORMAT} {VERSION}")
        points = {name: np.array(content[name], dtype=np.float64) for name in ("tokens", *POINTS)}
        if any(
            column.shape != points["tokens"].shape or column.ndim != 1 or not len(column) for column in points.values()
        ):
            raise ValueError("its columns differ in length")
        return Band(**content | points)
    except OSError as error:
        raise DataError(f"{path}: no such band: {error.strerror}; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a reference band ({error}); {remedy}") from None


def shipped_bands() -> list[Band]:
    """The bands in the package, sorted by recipe."""
    folder = resources.files(__package__ or "")
    return [read_band(path) for path in sorted(Path(str(folder)).glob("*.json"))]


def tokens_per_step(config: RunConfig) -> int:
    """Tokens in a step; 0 if the settings leave it to the machine."""
    train = config.train
    rows = train.batch_size * max(1, train.gradient_accumulation_steps)
    return train.batch_tokens or rows * config.model.context_length


def defining_settings(config: RunConfig) -> dict[str, Scalar]:
    """The settings that must equal the band's: those of the training loss except schedule, rate and its like, data."""
    settings = flatten(config)
    shape = {name: settings[name] for name, group in group_of().items() if group == "model"}
    shape["attention"] = "softmax" if config.model.attention in SOFTMAX else config.model.attention
    others = {name: settings[name] for name in ("optimizer", "init", "lora_rank", "batch_ramp")}
    return shape | others | {"tokens_per_step": tokens_per_step(config)}


def find_band(config: RunConfig, data_fingerprint: str, bands: Sequence[Band] | None = None) -> Band | str:
    """The band for a run of these settings on this data, or the reason why there is none."""
    band, differences = nearest_band(config, bands)
    if band is None or len(differences) > MOST_DIFFERENCES:
        return "no band for this recipe"
    if differences:
        return f"no band for these settings: {'; '.join(differences)} (of the recipe {band.recipe})"
    if data_fingerprint != band.fingerprint:
        own, expected = data_fingerprint[:12] or "unknown", band.fingerprint[:12]
        return f"no band for this data: its fingerprint is {own}, the band's is {expected} ({band.data})"
    return band


def nearest_band(config: RunConfig, bands: Sequence[Band] | None = None) -> tuple[Band | None, list[str]]:
    """The band whose settings differ least from the run's, and the differences, as "n_layer 6, not 3"."""
    own, defaults = defining_settings(config), defining_settings(RunConfig())
    found: list[tuple[Band, list[str]]] = []
    for band in shipped_bands() if bands is None else bands:
        expected = defaults | band.settings  # a setting newer than the band had its default
        differences = [
            f"{name} {value}, not {expected[name]}" for name, value in own.items() if value != expected[name]
        ]
        found.append((band, differences))
    return min(found, key=lambda entry: len(entry[1]), default=(None, []))


def prediction_interval(values: np.ndarray, *, level: float = LEVEL, pooled: int = POOLED) -> tuple[np.ndarray, ...]:
    """Mean, pooled standard deviation, low and high, (n,) each, of one more row of `values` (runs, n) at each point.

    mean -+ t s sqrt(1 + 1/runs) [Hahn 1991]. The variance s^2 is pooled with those of the neighbouring points, which
    gives it the degrees of freedom (runs - 1) (sum of variances)^2 / (sum of squared covariances) [Satterthwaite 1946]:
    runs - 1 for points that move together, k (runs - 1) for k independent ones. `level` is that of a single point.
    """
    runs, points = values.shape
    covariance = np.atleast_2d(np.cov(values, rowvar=False))
    spread, degrees = np.empty(points), np.empty(points)
    for point in range(points):
        near = slice(max(0, point - pooled), point + pooled + 1)
        spread[point] = math.sqrt(covariance[near, near].trace() / len(covariance[near]))
        degrees[point] = effective_degrees(covariance[near, near], runs)
    mean = values.mean(axis=0)
    t = import_optional("scipy.stats", extra="lab").t.ppf((1 + level) / 2, degrees)
    reach = t * math.sqrt(1.0 + 1.0 / runs) * spread
    return mean, spread, mean - reach, mean + reach


def effective_degrees(covariance: np.ndarray, runs: int) -> int:
    """Degrees of freedom of the mean of the variances on the diagonal of a (k, k) estimate from `runs` runs."""
    squares = float(np.square(covariance).sum())
    return max(runs - 1, int((runs - 1) * covariance.trace() ** 2 / squares)) if squares else runs - 1


def window_lines(lines: int) -> int:
    """Length of the smoothing window, a tenth of the lines."""
    return max(FEWEST_LINES, round(lines / 10))


def points_of(lines: int) -> np.ndarray:
    """The lines, counted from 1, that become points: at most 40, from the first full window to the last line."""
    first = window_lines(lines)
    return np.arange(lines, first - 1, -math.ceil((lines - first + 1) / 40))[::-1]


def smoothed(losses: np.ndarray, window: int) -> np.ndarray:
    """Trailing mean over `window` of (..., lines), (..., lines - window + 1)."""
    return np.lib.stride_tricks.sliding_window_view(losses, window, axis=-1).mean(axis=-1)


def scatter(losses: Sequence[float] | np.ndarray) -> float:
    """Robust standard deviation of the losses around their trend, without the first quarter; 0 for fewer than 4.

    A straight trend cancels in second differences; the median of their sizes is 0.6745 sqrt(6) standard deviations of
    independent normal noise.
    """
    if len(losses) < 4:
        return 0.0
    second = np.diff(np.asarray(losses, dtype=np.float64)[len(losses) // 4 :], n=2)
    return float(np.median(np.abs(second))) / (0.6745 * math.sqrt(6.0))


def make_band(
    losses: np.ndarray, gradient_norms: np.ndarray, *, about: Mapping[str, Any], tokens_per_step: int, log_every: int
) -> Band:
    """The band of runs with these mean losses (runs, lines), logged every `log_every` steps; `about`: the other fields.

    The intervals of gradient norms and scatter are those of their logarithms.
    """
    runs, lines = losses.shape
    if runs < 2 or lines < FEWEST_LINES:
        raise ValueError(f"got {runs} runs and {lines} lines, expected at least 2 and {FEWEST_LINES}")
    window, points = window_lines(lines), points_of(lines)
    mean, spread, low, high = prediction_interval(smoothed(losses, window)[:, points - window])
    log_norms = np.log(np.maximum(gradient_norms, 1e-6))
    norm, _, _, norm_high = prediction_interval(smoothed(log_norms, window)[:, points - window])
    typical, _, _, most = prediction_interval(np.log([[max(scatter(run), 1e-6)] for run in losses]))
    band = Band(
        **about,
        tokens_per_step=tokens_per_step,
        log_every=log_every,
        window_tokens=window * log_every * tokens_per_step,
        level=LEVEL,
        scatter=round(math.exp(typical[0]), 5),
        scatter_high=round(math.exp(most[0]), 5),
        tokens=points * float(log_every * tokens_per_step),
        mean=mean,
        spread=spread,
        low=low,
        high=high,
        lr_multiplier=np.zeros(len(points)),
        grad_norm=np.exp(norm),
        gradient_norm_high=np.exp(norm_high),
    )
    multipliers = np.array([band.multiplier(int(line) * log_every) for line in points])
    return dataclasses.replace(band, lr_multiplier=multipliers)
