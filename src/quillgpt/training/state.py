"""The state of a run between steps, and what may change when a run is resumed."""

import dataclasses
import logging
import math
from dataclasses import dataclass, field
from typing import Any

from quillgpt import records
from quillgpt.checkpoint import CONFIG, RUNTIME, STATE, Checkpoint
from quillgpt.config import MATMUL_PRECISIONS, RunConfig, check_choice, check_range, flatten, group_of, updated
from quillgpt.data.loader import BatchSchedule
from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.model.precision import DTYPES
from quillgpt.recipes import read_toml
from quillgpt.runtime import Runtime

logger = logging.getLogger(__name__)

IGNORED_ON_RESUME = {"data", "out", "fresh", "track", "track_project", "track_name", "init", "eval_tasks", "task_data"}
"""settings that do not change the numbers of a run; `data` and `init` are compared by their fingerprints instead"""
RUNTIME_SETTINGS = {
    "device": {"device"},
    "dtype": {"dtype"},
    "threads": {"threads"},
    "compile": {"compile"},
    "compile_backend": {"compile_backend"},
    "matmul_precision": {"float32_matmul_precision"},
    "micro_batch_size": {"batch_size"},
    "global_batch_size": {"batch_tokens", "batch_size", "gradient_accumulation_steps"},
    "steps": {"steps", "minutes"},
}
"""fields of the runtime that a resumed run takes from its checkpoint, unless one of their settings was changed"""


@dataclass(kw_only=True)
class TrainState:
    """The progress of a run. Scalars only: everything random is derived from the seed.

    global_batch_size: sequences in the first step over all ranks. global_batch_size_changes: [first step, sequences] of
    each change.
    """

    step: int = 0
    applied_updates: int = 0
    best_loss: float | None = None
    elapsed_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    has_reached_loss: bool = False
    non_finite_in_a_row: int = 0
    global_batch_size: int = 0
    global_batch_size_changes: list[list[int]] = field(default_factory=list)
    tokens: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)
    unlogged_loss: float = 0.0
    unlogged_steps: int = 0

    def add_loss(self, loss: float) -> None:
        """Add the loss of a step to the mean of the next metrics line; a non-finite loss is left out."""
        if math.isfinite(loss):
            self.unlogged_loss += loss
            self.unlogged_steps += 1

    @property
    def train_loss_mean(self) -> float:
        """Mean loss of the steps since the last metrics line; NaN if there is none."""
        return self.unlogged_loss / self.unlogged_steps if self.unlogged_steps else math.nan

    def reset_losses(self) -> None:
        """Begin the mean of the next metrics line."""
        self.unlogged_loss, self.unlogged_steps = 0.0, 0

    def schedule(self, context_length: int) -> BatchSchedule:
        """The batch size of every step, past and planned."""
        changes = tuple((step, size) for step, size in self.global_batch_size_changes)
        return BatchSchedule(context_length=context_length, global_batch_size=self.global_batch_size, changes=changes)


def read_state(checkpoint: Checkpoint) -> TrainState:
    """Return the state that a checkpoint was saved in."""
    path = checkpoint.path / STATE
    state = records.convert(checkpoint.read_json(STATE), TrainState, path, error=CheckpointError, complete=True)
    if state.step != checkpoint.step:
        raise CheckpointError(f"{path}: step {state.step:,}, the manifest says {checkpoint.step:,}")
    try:
        check_range(state, 0, 1 << 60, "tokens", "elapsed_seconds", "evaluation_seconds", "unlogged_steps")
        check_range(state, 0, state.step, "applied_updates", "non_finite_in_a_row", "unlogged_steps")
        check_range(state, 1, 1 << 40, "global_batch_size")
        state.schedule(context_length=1)
    except (ConfigError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return state


def changed_settings(checkpoint: Checkpoint, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from those of the checkpoint: name -> (then, now)."""
    path = checkpoint.path / CONFIG
    then = flatten(updated(RunConfig(), read_toml(path), where=str(path)))
    return {name: (then[name], now) for name, now in flatten(config).items() if then[name] != now}


def check_changes(checkpoint: Checkpoint, config: RunConfig, *, data_fingerprint: str) -> dict[str, tuple[Any, Any]]:
    """Return the changed settings; a change of model, adapters, data or seed is a `CheckpointError` that names it.

    The data is compared by its fingerprint: another path or name of the same tokens is no change.
    """
    changes = changed_settings(checkpoint, config)
    trained_with = {name: pair for name, pair in changes.items() if name not in IGNORED_ON_RESUME}
    refused = [
        f"{name} {then!r} -> {now!r}"
        for name, (then, now) in trained_with.items()
        if (group_of()[name] in ("model", "lora") and name != "dropout") or name == "seed"
    ]
    if refused:
        raise CheckpointError(
            f"{checkpoint.path}: this run cannot continue with another model or seed: {', '.join(refused)}; "
            "use the former settings, or another --out for a new run"
        )
    of_data = {name for name in changes if group_of()[name] == "data"}
    if checkpoint.manifest.data != data_fingerprint:
        differences = "".join(
            f", {name} {then!r} -> {now!r}" for name, (then, now) in changes.items() if name in of_data
        )
        raise CheckpointError(
            f"{checkpoint.path}: the data is not what this run was trained on (fingerprint {data_fingerprint[:12]}, "
            f"was {checkpoint.manifest.data[:12]}{differences}); "
            "bring that data back, or use another --out for a new run"
        )
    for name in trained_with.keys() - of_data:
        then, now = trained_with[name]
        logger.info("changed since the checkpoint: %s %r -> %r", name, then, now)
    return changes


def restored_runtime(checkpoint: Checkpoint, runtime: Runtime, changes: dict[str, tuple[Any, Any]]) -> Runtime:
    """Return the runtime of the checkpoint where no setting requests another, so that the bits stay the same.

    With another kind of device, or another number of ranks, a message says that the run is not bit-identical.
    """
    content = checkpoint.read_json(RUNTIME)
    path = checkpoint.path / RUNTIME
    stored = records.convert(content, Runtime, path, error=CheckpointError, complete=True)
    try:
        check_range(stored, 1, 1 << 40, "global_batch_size", "micro_batch_size", "world_size")
        check_range(stored, 1, 1 << 10, "threads")
        check_range(stored, 0, 1 << 60, "steps")
        check_choice(stored, "dtype", *DTYPES)
        check_choice(stored, "matmul_precision", *MATMUL_PRECISIONS)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    kept = {name: getattr(stored, name) for name, settings in RUNTIME_SETTINGS.items() if not settings & changes.keys()}
    if kept.get("device", runtime.device).partition(":")[0] != runtime.device.partition(":")[0]:
        logger.info("continuing, not bit-identical: device was %s, is %s", kept["device"], runtime.device)
        local = {"dtype", "threads", "compile", "compile_backend", "micro_batch_size"}
    elif stored.world_size != runtime.world_size:
        logger.info("continuing, not bit-identical: ranks were %s, are %s", stored.world_size, runtime.world_size)
        local = {"micro_batch_size", "threads"}
    else:
        local = set()
    local |= {"device"}  # the same kind of device; its index is that of this process
    return dataclasses.replace(runtime, **{name: value for name, value in kept.items() if name not in local})
