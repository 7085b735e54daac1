"""Gather what is known about a run: records, band, checkpoint, data; what is missing is recorded with its reason."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from quillgpt import checkpoint
from quillgpt.checkpoint import STATE, Checkpoint
from quillgpt.checkpoint.init_from import evaluation_tokens
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.loader import BatchLoader, BatchSchedule, ValidationWindows
from quillgpt.errors import CheckpointError, DataError, QuillError
from quillgpt.lab.bands.band import Band, find_band, nearest_band, tokens_per_step
from quillgpt.lab.bands.judge import Judge, judged
from quillgpt.lab.doctor.probe import (
    FEWEST_BATCHES,
    LOGGED_BATCHES,
    Batches,
    Probe,
    affordable_tokens,
    probe_batches,
    probe_frequencies,
    probe_validation,
)
from quillgpt.lab.run_record import RunRecord
from quillgpt.pretrained.source import load_model_from
from quillgpt.run_dir import RunDirectory

CERTAINTIES = CERTAIN, VERY_LIKELY, LIKELY, POSSIBLE = "certain", "very likely", "likely", "possible"
FEWEST_LINES = 8
DTYPES = {"bf16": torch.bfloat16}  # fp16 is not computed on a CPU


@dataclass(frozen=True)
class Finding:
    """A cause with evidence for it; `certainty` is one of `CERTAINTIES`."""

    certainty: str
    remedy: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What is known about a run.

    `judge` compares it with its band; `at_equal_steps` with the nearest band at equal steps if only the batch size
    differs. `has_other_tokenizer`: the data's tokenizer is not the checkpoint's. `missing`: why there is no "lines",
    "band", "checkpoint", "tokenizer", "batches" or "recorded" (validation loss at the checkpoint's step).
    """

    record: RunRecord
    judge: Judge | None = None
    at_equal_steps: Judge | None = None
    probe: Probe | None = None
    has_other_tokenizer: bool = False
    missing: Mapping[str, str]

    @property
    def band(self) -> Band | None:
        """The band by which the run is judged."""
        return self.judge.band if self.judge else None

    @property
    def learning_rate_ratio(self) -> float:
        """The run's peak learning rate divided by that of the band's runs; 1 without a band."""
        return self.record.config.optim.lr / float(self.band.optim["lr"]) if self.band else 1.0

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and the finite values of a metric, (n,) each."""
        steps, values = self.record.series(name)
        return steps[np.isfinite(values)], values[np.isfinite(values)]

    @property
    def training_loss(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and the mean loss since the line before, (n,) each; the loss of single steps if it is not logged."""
        return self.series(
            "train_loss_mean" if any("train_loss_mean" in line for line in self.record.lines) else "train_loss"
        )

    @property
    def last_training_loss(self) -> float:
        """Mean over the last tenth of the lines; NaN without lines."""
        _, losses = self.training_loss
        return float(losses[-max(1, len(losses) // 10) :].mean()) if len(losses) else math.nan


def observe(
    record: RunRecord, *, bands: Sequence[Band] | None, with_probes: bool, heartbeat: Callable[[str], None]
) -> Observed:
    """Gather everything about a run; without probes no checkpoint is opened."""
    missing: dict[str, str] = {}
    if len(record.lines) < FEWEST_LINES:
        missing["lines"] = f"{FEWEST_LINES} lines of metrics are needed; there are {len(record.lines)}"
    judge = None
    if isinstance(band := find_band(record.config, record.data_fingerprint, bands), str):
        missing["band"] = band
    else:
        judge = judged(band, record.lines, peak_lr=record.config.optim.lr)
        if not judge.points:
            missing["band"] = _why_not_judged(judge, record)
    probe, has_other_tokenizer = None, False
    try:
        if not with_probes:
            raise CheckpointError("--no-probes opens no checkpoint")
        found = newest_intact(record.path)
        directory = Path(record.environment.get("data", {}).get("directory", ""))
        train, validation = (TokenDataset.open(directory, split) for split in ("train", "val"))
        has_other_tokenizer = train.tokenizer_fingerprint != found.manifest.tokenizer
        if train.fingerprint != found.manifest.data:
            raise DataError(f"{train.directory} is not the data the run was trained on")
        probe = _probed(record, found, train, validation, missing, heartbeat)
        if probe.recorded is None:
            missing["recorded"] = f"the metrics have no validation loss at the checkpoint's step, {probe.step:,}"
    except QuillError as error:
        names = ["checkpoint", "batches", "recorded", *([] if has_other_tokenizer else ["tokenizer"])]
        missing |= dict.fromkeys(names, str(error))
    return Observed(
        record=record,
        judge=judge,
        at_equal_steps=judge_at_equal_steps(record, bands),
        probe=probe,
        has_other_tokenizer=has_other_tokenizer,
        missing=missing,
    )


def judge_at_equal_steps(record: RunRecord, bands: Sequence[Band] | None) -> Judge | None:
    """The run against the nearest band at equal steps, if only the batch size differs."""
    band, differences = nearest_band(record.config, bands)
    own = tokens_per_step(record.config)
    if band is None or len(differences) != 1 or not differences[0].startswith("tokens_per_step") or not own:
        return None
    if record.data_fingerprint != band.fingerprint:
        return None
    window = band.window_tokens // band.tokens_per_step * own
    tokens = band.tokens / band.tokens_per_step * own
    scaled = replace(band, tokens=tokens, window_tokens=window, tokens_per_step=own)
    return judged(scaled, record.lines, peak_lr=record.config.optim.lr)


def _why_not_judged(judge: Judge, record: RunRecord) -> str:
    first = int(judge.band.tokens[0]) // judge.band.tokens_per_step
    if judge.ended:
        return judge.ended
    if record.lines and not any("train_loss_mean" in line for line in record.lines):
        return "the metrics have no train_loss_mean"
    if not record.lines or record.lines[-1]["step"] < first:
        return f"the band begins at step {first:,}"
    return "no lines of the metrics begin and end where the band's windows do; log every step, or as the recipe does"


def newest_intact(run: Path) -> Checkpoint:
    """The newest checkpoint of a run whose files match their checksums; `CheckpointError` if there is none."""
    for found in reversed(checkpoint.committed(RunDirectory(run))):
        with contextlib.suppress(CheckpointError):
            checkpoint.verify(found, model_only=True)
            return found
    raise CheckpointError(f"{run} has no intact checkpoint")


def _probed(
    record: RunRecord,
    found: Checkpoint,
    train: TokenDataset,
    validation: TokenDataset,
    missing: dict[str, str],
    heartbeat: Callable[[str], None],
) -> Probe:
    heartbeat("opening the checkpoint")
    model, _ = load_model_from(checkpoint.to_source(found))
    dtype = DTYPES.get(record.environment.get("runtime", {}).get("dtype", ""), torch.float32)
    heartbeat("scoring validation text")
    windows = ValidationWindows(validation, model.config.context_length, evaluation_tokens(record.config))
    scores = probe_validation(model, windows, dtype=dtype)
    heartbeat("scoring the batches of logged steps")
    loader, logged, reason = logged_batches(record, found, train, affordable_tokens(model))
    batches: Batches | None = None
    if reason:
        missing["batches"] = reason
    else:
        batches = probe_batches(model, loader, train, logged, dtype=dtype)
    recorded = [line["val_loss"] for line in record.lines if line["step"] == found.step and "val_loss" in line]
    return Probe(
        step=found.step,
        recorded=recorded[0] if recorded else None,
        validation=scores,
        frequencies=probe_frequencies(train, validation),
        batches=batches,
    )


def logged_batches(
    record: RunRecord, found: Checkpoint, train: TokenDataset, most_tokens: int
) -> tuple[BatchLoader, list[tuple[int, int, float]], str]:
    """The run's loader, the last logged steps after the first third, and why they cannot be scored, "" if they can.

    A step is (number from 1, tokens before it, loss).
    """
    state = found.read_json(STATE)
    context_length = record.config.model.context_length
    changes = tuple((step, rows) for step, rows in state.get("global_batch_size_changes", ()))
    schedule = BatchSchedule(
        context_length=context_length, global_batch_size=max(1, state.get("global_batch_size", 0)), changes=changes
    )
    loader = BatchLoader(train, context_length=context_length, schedule=schedule, seed=record.config.train.seed)
    lines = [line for line in record.lines if found.step // 3 < line["step"] <= found.step]
    finite = [line for line in lines if math.isfinite(line["train_loss"])][-LOGGED_BATCHES:]
    logged = [(line["step"], schedule.first_token(line["step"] - 1), float(line["train_loss"])) for line in finite]
    tokens = sum(schedule.global_batch_size_at(step - 1) for step, _, _ in logged) * context_length
    reason = ""
    if len(logged) < FEWEST_BATCHES:
        between = f"between step {found.step // 3:,} and the checkpoint's, {found.step:,}"
        reason = f"{FEWEST_BATCHES} logged steps are needed {between}; there are {len(logged)}"
    elif tokens > most_tokens:
        reason = f"the batches of {len(logged)} logged steps have {tokens:,} tokens, at most {most_tokens:,} are scored"
    return loader, logged, reason
