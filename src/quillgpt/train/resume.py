"""Continuing a run: what must be the same, what may change, and what a checkpoint says about where it stood."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quillgpt.checkpoint import CONFIG, RESOLVED, STATE, Checkpoint
from quillgpt.config import RunConfig, flatten, group_of, updated
from quillgpt.data.loader import BatchSchedule
from quillgpt.errors import CheckpointError
from quillgpt.recipes import read_toml
from quillgpt.train.resolve import Choices

FREE_OF_BITS = {"data", "out", "fresh", "track", "track_project", "track_name", "init", "eval_tasks", "task_data"}
CHOSEN = {
    "device": "device",
    "dtype": "dtype",
    "threads": "threads",
    "compile": "compile",
    "compile_backend": "compile_backend",
    "matmul_precision": "float32_matmul_precision",
    "batch_size": "batch_size",
}
"""choices that a resumed run takes from its checkpoint, and the settings that ask for another"""
BATCH_SETTINGS = {"batch_tokens", "batch_size", "gradient_accumulation_steps"}


@dataclass(kw_only=True)
class Position:
    """How far a run has come; scalars only, because everything random is derived from the seed."""

    step: int = 0
    steps: int = 0
    best_loss: float | None = None
    elapsed_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    has_reached_loss: bool = False
    non_finite_in_a_row: int = 0
    rows: int = 0
    row_changes: list[list[int]] = field(default_factory=list)
    tokens: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)
    unlogged_loss: float = 0.0
    unlogged_steps: int = 0

    def take_in(self, loss: float) -> None:
        """Add a step's loss to those since the last line of metrics; one that is not finite is left out."""
        if math.isfinite(loss):
            self.unlogged_loss += loss
            self.unlogged_steps += 1

    def schedule(self, context_length: int) -> BatchSchedule:
        """The rows of every step: those that were, and those planned."""
        changes = tuple((step, rows) for step, rows in self.row_changes)
        return BatchSchedule(context_length=context_length, rows=self.rows, changes=changes)

    @property
    def mean_loss(self) -> float:
        """The mean loss of the steps since the last line of metrics; NaN where there is none."""
        return self.unlogged_loss / self.unlogged_steps if self.unlogged_steps else math.nan

    def forget_losses(self) -> None:
        """Begin with the next line."""
        self.unlogged_loss, self.unlogged_steps = 0.0, 0


def read_position(checkpoint: Checkpoint) -> Position:
    """The position a checkpoint was saved at."""
    return Position(**checkpoint.read_json(STATE))


def changed_settings(checkpoint: Checkpoint, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that differ from the checkpoint's: name -> (then, now)."""
    path = checkpoint.path / CONFIG
    then = flatten(updated(RunConfig(), read_toml(path), where=str(path)))
    return {name: (then[name], now) for name, now in flatten(config).items() if then[name] != now}


def check_changes(
    checkpoint: Checkpoint, config: RunConfig, *, data_fingerprint: str, say: Callable[[str], None]
) -> dict[str, tuple[Any, Any]]:
    """Refuse changes of the model, its adapters or the data, naming each; say the others, and return them."""
    changes = changed_settings(checkpoint, config)
    fixed = ("model", "data", "lora")
    refused = {name: pair for name, pair in changes.items() if group_of()[name] in fixed or name == "seed"}
    refused.pop("dropout", None)
    refused = {name: pair for name, pair in refused.items() if name not in FREE_OF_BITS}
    if refused:
        difference = ", ".join(f"{name} {then!r} -> {now!r}" for name, (then, now) in refused.items())
        remedy = "use the former settings, or another --out for a new run"
        raise CheckpointError(
            f"{checkpoint.path}: this run cannot continue with another model or data: {difference}; {remedy}"
        )
    if checkpoint.manifest["data"] != data_fingerprint:
        raise CheckpointError(
            f"{checkpoint.path}: the data is not what this run was trained on (fingerprint {data_fingerprint[:12]}, "
            f"was {checkpoint.manifest['data'][:12]}); bring that data back, or use another --out for a new run"
        )
    for name, (then, now) in changes.items():
        if name not in FREE_OF_BITS:
            say(f"changed since the checkpoint: {name} {then!r} -> {now!r}")
    return changes


def former_choices(
    checkpoint: Checkpoint, choices: Choices, changes: dict[str, tuple[Any, Any]], say: Callable[[str], None]
) -> Choices:
    """The checkpoint's choices wherever they were not changed on purpose, so that the bits are the same.

    A device that this machine does not have, or another number of ranks, continues with a word of warning.
    """
    stored = checkpoint.read_json(RESOLVED)
    kept = {name: stored[name] for name, setting in CHOSEN.items() if setting not in changes and name in stored}
    if kept.get("device", choices.device).partition(":")[0] != choices.device.partition(":")[0]:
        say(f"continuing, not bit-identical: device was {kept['device']}, is {choices.device}")
        for name in ("device", "dtype", "threads", "compile", "compile_backend", "batch_size"):
            kept.pop(name, None)
    elif stored["world_size"] != choices.world_size:
        say(f"continuing, not bit-identical: ranks were {stored['world_size']}, are {choices.world_size}")
        for name in ("batch_size", "threads"):
            kept.pop(name, None)
    kept.pop("device", None)  # the same kind of device; its number is this process's own
    if not BATCH_SETTINGS & changes.keys():
        kept["rows"] = stored["rows"]
    return dataclasses.replace(choices, **kept)
