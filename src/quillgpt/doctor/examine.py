"""Bring together what there is: records, band, checkpoint, data; what is missing is told with its reason."""

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from quillgpt import checkpoint
from quillgpt.checkpoint import STATE, Checkpoint
from quillgpt.data.held_out import HeldOutWindows
from quillgpt.data.loader import BatchLoader, BatchSchedule
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.doctor.observed import Observed, judge_at_equal_steps, judge_of
from quillgpt.doctor.probe import (
    FEWEST_BATCHES,
    LOGGED_BATCHES,
    Probe,
    affordable_tokens,
    look_at_batches,
    look_at_frequencies,
    look_at_held_out,
)
from quillgpt.errors import CheckpointError, DataError, QuillError
from quillgpt.evaluate.bands import Band
from quillgpt.pretrained.source import load_model_from
from quillgpt.run_dir import RunDirectory
from quillgpt.run_record import RunRecord
from quillgpt.train.open_data import evaluation_tokens

FEWEST_LINES = 8
DTYPES = {"bf16": torch.bfloat16}  # fp16 is not computed on a CPU


def observe(
    record: RunRecord, *, bands: Sequence[Band] | None, with_probes: bool, heartbeat: Callable[[str], None]
) -> Observed:
    """Everything about a run. `heartbeat` is told what comes next; without probes no checkpoint is opened."""
    missing: dict[str, str] = {}
    if len(record.lines) < FEWEST_LINES:
        missing["lines"] = f"metrics.jsonl has {len(record.lines)} lines; {FEWEST_LINES} are needed"
    judge, reason = judge_of(record, bands)
    if reason:
        missing["band"] = reason
    probe, has_other_tokenizer = None, False
    try:
        if not with_probes:
            raise CheckpointError("no checkpoint was opened, as asked with --no-probes")
        found = newest_intact(record.path)
        train, held_out = opened_data(record)
        has_other_tokenizer = train.tokenizer_fingerprint != found.manifest["tokenizer"]
        if train.fingerprint != found.manifest["data"]:
            raise DataError(f"{train.directory} holds other data than the run was trained on")
        probe = _probed(record, found, train, held_out, missing, heartbeat)
    except QuillError as error:
        missing["checkpoint"] = str(error)
    if probe is None:
        missing |= dict.fromkeys(("batches", "recorded"), missing["checkpoint"])
        if not has_other_tokenizer:
            missing["tokenizer"] = missing["checkpoint"]
    elif probe.recorded is None:
        missing["recorded"] = f"no held-out loss was recorded at step {probe.step:,}, where the checkpoint is"
    return Observed(
        record=record,
        judge=judge,
        at_equal_steps=judge_at_equal_steps(record, bands),
        probe=probe,
        has_other_tokenizer=has_other_tokenizer,
        missing=missing,
    )


def newest_intact(run: Path) -> Checkpoint:
    """The newest checkpoint of a run, its files compared with their checksums; a `CheckpointError` where none is."""
    for found in reversed(checkpoint.committed(RunDirectory(run))):
        with contextlib.suppress(CheckpointError):
            checkpoint.verify(found, model_only=True)
            return found
    raise CheckpointError(f"{run} has no intact checkpoint")


def opened_data(record: RunRecord) -> tuple[TokenDataset, TokenDataset]:
    """Both splits of the run's data, where it lay when the run began; a `DataError` where they are not there."""
    directory = Path(record.environment.get("data", {}).get("directory", ""))
    train, held_out = (TokenDataset.open(directory, split) for split in ("train", "val"))
    return train, held_out


def _probed(
    record: RunRecord,
    found: Checkpoint,
    train: TokenDataset,
    held_out: TokenDataset,
    missing: dict[str, str],
    heartbeat: Callable[[str], None],
) -> Probe:
    heartbeat("opening the checkpoint")
    model, _ = load_model_from(checkpoint.as_source(found))
    dtype = DTYPES.get(record.environment.get("choices", {}).get("dtype", ""), torch.float32)
    heartbeat("scoring held-out text")
    windows = HeldOutWindows(held_out, model.config.context_length, evaluation_tokens(record.config))
    of_held_out = look_at_held_out(model, windows, dtype=dtype)
    heartbeat("scoring the batches of logged steps")
    loader, logged, reason = logged_batches(record, found, train, affordable_tokens(model))
    if reason:
        missing["batches"] = reason
    recorded = [
        line["held_out_loss"] for line in record.lines if line["step"] == found.step and "held_out_loss" in line
    ]
    return Probe(
        step=found.step,
        recorded=recorded[0] if recorded else None,
        held_out=of_held_out,
        frequencies=look_at_frequencies(train, held_out),
        batches=None if reason else look_at_batches(model, loader, train, logged, dtype=dtype),
    )


def logged_batches(
    record: RunRecord, found: Checkpoint, train: TokenDataset, most_tokens: int
) -> tuple[BatchLoader, list[tuple[int, int, float]], str]:
    """The run's loader, its last logged steps behind the first third (step, tokens before it, loss), and why none."""
    state = found.read_json(STATE)
    context_length = record.config.model.context_length
    changes = tuple((step, rows) for step, rows in state.get("row_changes", ()))
    schedule = BatchSchedule(context_length=context_length, rows=max(1, state.get("rows", 0)), changes=changes)
    loader = BatchLoader(train, context_length=context_length, schedule=schedule, seed=record.config.train.seed)
    lines = [line for line in record.lines if found.step // 3 < line["step"] <= found.step]
    finite = [line for line in lines if math.isfinite(line["loss"])][-LOGGED_BATCHES:]
    logged = [(line["step"], schedule.position(line["step"] - 1), float(line["loss"])) for line in finite]
    tokens = sum(schedule.rows_at(step - 1) for step, _, _ in logged) * context_length
    reason = ""
    if len(logged) < FEWEST_BATCHES:
        reason = f"{len(logged)} steps are logged between step {found.step // 3:,} and the checkpoint's, {found.step:,}"
        reason += f"; {FEWEST_BATCHES} are needed"
    elif tokens > most_tokens:
        reason = f"the batches of {len(logged)} logged steps have {tokens:,} tokens, at most {most_tokens:,} are scored"
    return loader, logged, reason
