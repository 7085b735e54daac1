"""The format of a band: what it holds for, how it was made, and its points; read from and written as JSON."""

import dataclasses
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from quillgpt.config import OptimConfig, Scalar
from quillgpt.errors import DataError
from quillgpt.optim.schedules import learning_rate

FORMAT, VERSION = "quillgpt reference band", 1
POINTS = ("mean", "spread", "low", "high", "lr_multiplier", "gradient_norm", "gradient_norm_high")


@dataclass(frozen=True, kw_only=True)
class Band:
    """Where the smoothed training loss of a healthy run lies, in nats per token, at each of n points.

    `tokens`: (n,) the points. At each, the loss of one more run of these settings lies between `low` and `high` with
    probability `level`; `mean` is that of the runs it was made from, and `spread` their standard deviation, pooled.
    A smoothed loss is the mean of all steps in the `window_tokens` up to the point, whatever of them is logged.

    `settings` and `fingerprint` say for which runs it holds; `optim`, `schedule_steps` what else its own runs had.
    `scatter` is how far the mean loss of `log_every` steps lies from the trend, `scatter_high` the most that one more
    run has; `gradient_norm` is that of the runs, before clipping, `gradient_norm_high` the most of one more run.
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
    gradient_norm: np.ndarray
    gradient_norm_high: np.ndarray

    @property
    def steps(self) -> int:
        """The step the band ends at."""
        return int(self.tokens[-1]) // self.tokens_per_step

    def multiplier(self, step: int) -> float:
        """The learning rate of the band's runs at the step that is the step-th from 1, divided by its peak."""
        settings = OptimConfig(**self.optim)  # type: ignore[arg-type]
        return learning_rate(step - 1, self.schedule_steps, settings) / settings.lr

    def to_json(self) -> dict[str, Any]:
        """The band as plain values."""
        content: dict[str, Any] = {"format": FORMAT, "version": VERSION} | dataclasses.asdict(self)
        content["tokens"] = [int(value) for value in self.tokens]
        return content | {name: [round(float(value), 5) for value in content[name]] for name in POINTS}


def read_band(path: Path) -> Band:
    """A band from its file; a missing or damaged one is a `DataError`."""
    remedy = "python benchmarks/reference_bands.py makes one"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content.pop("format"), content.pop("version")) != (FORMAT, VERSION):
            raise ValueError(f"expected {FORMAT} {VERSION}")
        points = {name: np.array(content[name], dtype=np.float64) for name in ("tokens", *POINTS)}
        band = Band(**content | points)
        if any(column.shape != band.tokens.shape or column.ndim != 1 or not len(column) for column in points.values()):
            raise ValueError("its columns differ in length")
    except OSError as error:
        raise DataError(f"{path}: no band there: {error.strerror}; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a reference band ({error}); {remedy}") from None
    return band


def shipped_bands() -> list[Band]:
    """The bands in the package, in the order of their recipes' names."""
    folder = resources.files("quillgpt.evaluate.bands")
    paths = sorted(Path(str(entry)) for entry in folder.iterdir() if entry.name.endswith(".json"))
    return [read_band(path) for path in paths]
