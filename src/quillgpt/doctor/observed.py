"""Everything that is known about a run when its causes are looked for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quillgpt.doctor.probe import Probe
from quillgpt.evaluate.bands import Band, find_band
from quillgpt.evaluate.bands.finding import nearest_band, tokens_per_step
from quillgpt.evaluate.bands.judging import Judge, judged
from quillgpt.run_record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Observed:
    """The records of a run, the run against its band, and what the probes of its checkpoint gave.

    `judge` is None without a band, `at_equal_steps` where the nearest band is of another batch alone.
    `has_other_tokenizer`: the data lies in tokens of another tokenizer than the checkpoint's. `missing` says of each
    thing that is not there, by its name ("lines", "band", "checkpoint", "tokenizer", "batches", "recorded"), why.
    """

    record: RunRecord
    judge: Judge | None
    at_equal_steps: Judge | None
    probe: Probe | None
    has_other_tokenizer: bool
    missing: Mapping[str, str]

    @property
    def band(self) -> Band | None:
        """The band the run is judged by."""
        return self.judge.band if self.judge else None

    @property
    def learning_rate_ratio(self) -> float:
        """The run's peak learning rate, in those of the band's runs; 1 without a band."""
        return self.record.config.optim.lr / float(self.band.optim["lr"]) if self.band else 1.0

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and a column of the metrics, (n,) each, where it is a finite number."""
        steps, values = self.record.series(name)
        return steps[np.isfinite(values)], values[np.isfinite(values)]

    @property
    def training_loss(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and the mean loss up to each; the loss of single steps in the metrics of an older quillgpt."""
        return self.series("mean_loss" if any("mean_loss" in line for line in self.record.lines) else "loss")

    @property
    def training_loss_now(self) -> float:
        """The mean over the last tenth of the lines; NaN where there are none."""
        _, losses = self.training_loss
        return float(losses[-max(1, len(losses) // 10) :].mean()) if len(losses) else math.nan


def judge_of(record: RunRecord, bands: Sequence[Band] | None) -> tuple[Judge | None, str]:
    """The run against its band, or why there is none."""
    band = find_band(record.config, record.data_fingerprint, bands)
    if isinstance(band, str):
        return None, band
    judge = judged(band, record.lines, peak_lr=record.config.optim.lr)
    return judge, "" if judge.points else _why_not_judged(judge, record)


def judge_at_equal_steps(record: RunRecord, bands: Sequence[Band] | None) -> Judge | None:
    """The run against the band of its recipe at equal steps, where nothing but the size of a batch differs."""
    band, differences = nearest_band(record.config, bands)
    own = tokens_per_step(record.config)
    if band is None or len(differences) != 1 or not differences[0].startswith("tokens_per_step") or not own:
        return None
    if record.data_fingerprint != band.fingerprint:
        return None
    scaled = replace(
        band,
        tokens=band.tokens / band.tokens_per_step * own,
        window_tokens=band.window_tokens // band.tokens_per_step * own,
        tokens_per_step=own,
    )
    return judged(scaled, record.lines, peak_lr=record.config.optim.lr)


def _why_not_judged(judge: Judge, record: RunRecord) -> str:
    if judge.ended:
        return judge.ended
    if record.lines and not any("mean_loss" in line for line in record.lines):
        return "its metrics have no mean_loss: it was trained by an older quillgpt"
    first = int(judge.band.tokens[0]) // judge.band.tokens_per_step
    return f"the band begins at step {first:,}; or no lines of the metrics end where its points are"
