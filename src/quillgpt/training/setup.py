"""`load` opens data and model; `build` makes optimizer, loader and step for the final runtime, and decides nothing."""

import contextlib
import dataclasses
import logging
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from quillgpt import checkpoint, files
from quillgpt.checkpoint import Checkpoint
from quillgpt.checkpoint.init_from import data_settings, evaluation_tokens, init_source, initial_model
from quillgpt.config import RunConfig, batch_plan, flatten, merged_plan, smallest_batch_size
from quillgpt.data import load_data_tokenizer
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.loader import BatchLoader, BatchSchedule, ValidationWindows
from quillgpt.data.prepare import data_directory, prepare
from quillgpt.data.sources import SOURCES
from quillgpt.distributed import Ranks, broadcast_int, main_process_first
from quillgpt.errors import CheckpointError, ConfigError, DataError, pick
from quillgpt.evaluate.results import code_fingerprint
from quillgpt.evaluate.tasks import parse_tasks
from quillgpt.model.attention import find_attention
from quillgpt.model.gpt import GPT, RESIDUALS
from quillgpt.model.initialization import INITIALIZATIONS
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.model.positions import POSITIONS
from quillgpt.model.sizes import parameter_count
from quillgpt.optim import OPTIMIZERS, build_optimizer, load_state_tensors
from quillgpt.optim.schedules import SCHEDULES
from quillgpt.pretrained.adapter import Adapter
from quillgpt.pretrained.source import Source
from quillgpt.run_dir import RUNS, RunDirectory, config_toml, cut_metrics, read_metrics
from quillgpt.runtime import Runtime, check_batch_size, cpu_name, set_up_torch
from quillgpt.tokenizer import Tokenizer, bytes_per_token
from quillgpt.training.screen import Screen
from quillgpt.training.state import TrainState, changed_settings, check_changes, read_state, restored_runtime
from quillgpt.training.step import WrappedModel, wrap
from quillgpt.training.track import TRACKERS

logger = logging.getLogger(__name__)

MENUS: Mapping[str, Mapping[str, object]] = {
    "mlp": MLPS,
    "norm": NORMS,
    "position": POSITIONS,
    "residual": RESIDUALS,
    "initialization": INITIALIZATIONS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "source": SOURCES,
    "track": {"none": None, **TRACKERS},
}


def check_menus(config: RunConfig) -> None:
    """Refuse an unknown entry of any menu, before data is prepared."""
    settings = flatten(config)
    find_attention(config.model.attention)
    for setting, menu in MENUS.items():
        pick(menu, str(settings[setting]), setting)
    if config.train.eval_tasks:
        parse_tasks(config.train.eval_tasks)


@contextlib.contextmanager
def opened_run(out: str, ranks: Ranks) -> Iterator[RunDirectory]:
    """The run's directory; rank 0 locks it until the block ends, and removes what a killed save left."""
    run = RunDirectory(RUNS / "run" if out == "auto" else Path(out))
    if not ranks.is_main_process:
        yield run
        return
    files.make_directory(run.checkpoints)
    with files.locked(run.path):
        files.remove_leftovers(run.path)
        files.remove_leftovers(run.checkpoints)
        yield run


# Data


@dataclass(frozen=True, kw_only=True)
class Data:
    """Training tokens, validation windows, and the tokenizer that made them."""

    directory: Path
    train: TokenDataset
    validation: ValidationWindows
    tokenizer: Tokenizer
    bytes_per_token: np.ndarray


def open_data(config: RunConfig, init_model: Source | None, ranks: Ranks, screen: Screen) -> Data:
    """Open the run's data; rank 0 first prepares it if it is missing. init_model: where the run starts from."""
    settings = data_settings(config, init_model)
    directory = data_directory(settings, config.model.vocab_size)
    with main_process_first(ranks):
        if ranks.is_main_process and not (directory / "manifest.json").is_file():
            if settings.data != "auto":
                remedy = f"`quill prepare ... --out {directory}` makes it"
                raise ConfigError(f"{directory}: no prepared data there; {remedy}")
            logger.info("preparing %s in %s/ (once; later runs reuse it)", settings.source, directory)
            with screen.preparing() as progress:
                prepare(settings, vocab_size=config.model.vocab_size, out=directory, progress=progress)
        train = TokenDataset.open(directory, "train")
    tokenizer = load_data_tokenizer(directory)
    if init_model is not None and init_model.tokenizer_fingerprint != tokenizer.fingerprint:
        theirs, ours = (
            f"the tokenizer {each.name} of {each.vocab_size:,} tokens ({each.fingerprint[:12]})"
            for each in (init_model.tokenizer(), tokenizer)
        )
        remedy = "choose other --data, or leave it out to prepare the text for this model"
        raise DataError(f"{directory} was made with {ours}, {init_model.name} was trained with {theirs}; {remedy}")
    windows = TokenDataset.open(directory, "val"), config.model.context_length, evaluation_tokens(config)
    return Data(
        directory=directory,
        train=train,
        validation=ValidationWindows(*windows),
        tokenizer=tokenizer,
        bytes_per_token=bytes_per_token(tokenizer),
    )


# What a run starts from, and what the loop works with


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """What a run starts from: a new model, another project's weights, or its own newest intact checkpoint."""

    checkpoint: Checkpoint | None
    data: Data
    model: GPT
    adapter: Adapter | None
    state: TrainState
    runtime: Runtime


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The frozen runtime, the reasons of the fields that were measured, and the step if it was compiled."""

    runtime: Runtime
    reasons: Mapping[str, str]
    wrapped_model: WrappedModel | None = None
    compile_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainingComponents:
    """What the loop works with. compile_seconds: time to compile the step; 0 without torch.compile."""

    runtime: Runtime
    data: Data
    model: GPT
    adapter: Adapter | None
    optimizer: torch.optim.Optimizer
    wrapped_model: WrappedModel
    loader: BatchLoader
    schedule: BatchSchedule
    state: TrainState
    compile_seconds: float = 0.0


def load(run: RunDirectory, config: RunConfig, runtime: Runtime, ranks: Ranks, screen: Screen) -> LoadedRun:
    """Open the data and the model; with a checkpoint, its state and the runtime it was saved with."""
    found = checkpoint.latest_intact(run)
    if found is not None and config.train.fresh:
        remedy = "leave out --fresh, or choose --out"
        raise CheckpointError(f"{run.path} already holds a run at step {found.step}; {remedy}")
    init_model = init_source(config, found)
    if init_model is not None and found is None:
        logger.info("starting from the weights of %s", init_model.name)
        with main_process_first(ranks):  # rank 0 fetches a published model
            init_model.check(dataclasses.replace(config.model, vocab_size=init_model.config.vocab_size))
    data = open_data(config, init_model, ranks, screen)
    batch_size = broadcast_int(runtime.global_batch_size, ranks, torch.device(runtime.device))
    runtime = dataclasses.replace(runtime, global_batch_size=batch_size)
    state = TrainState()
    if found is not None:
        logger.info("continuing %s", found.path)
        changes = check_changes(found, config, data_fingerprint=data.train.fingerprint)
        runtime = restored_runtime(found, runtime, changes)
        state = read_state(found)
        if "stop_at_loss" in changes:
            state.has_reached_loss = False
    check_batch_size(smallest_batch_size(config.train.batch_ramp, runtime.global_batch_size), ranks)
    _check_same_step(run, state, runtime, ranks)
    set_up_torch(runtime.device, threads=runtime.threads, matmul_precision=runtime.matmul_precision)
    model_config = dataclasses.replace(config.model, vocab_size=data.tokenizer.vocab_size)
    model, adapter = initial_model(config, model_config, runtime.device, init_model, found)
    return LoadedRun(checkpoint=found, data=data, model=model, adapter=adapter, state=state, runtime=runtime)


def _check_same_step(run: RunDirectory, state: TrainState, runtime: Runtime, ranks: Ranks) -> None:
    """Refuse ranks that found another checkpoint than rank 0, as on nodes that do not share the run directory."""
    step = broadcast_int(state.step, ranks, torch.device(runtime.device))
    if step != state.step:
        found = f"rank 0 continues from step {step}, rank {ranks.rank} from step {state.step}"
        raise CheckpointError(f"{run.path}: {found}; put --out where all nodes see the same files")


def build(
    run: RunDirectory, config: RunConfig, loaded: LoadedRun, calibration: Calibration, ranks: Ranks
) -> TrainingComponents:
    """Optimizer, step and loader for the frozen runtime, with the saved optimizer state; write the run's records."""
    model, state, data, runtime = loaded.model, loaded.state, loaded.data, calibration.runtime
    _plan_batches(state, config.train.batch_ramp, runtime)
    wrapped_model = calibration.wrapped_model or wrap(model, runtime, ranks)
    optimizer = build_optimizer(model, config.optim)
    if loaded.checkpoint is not None:
        _load_optimizer(optimizer, model, loaded.checkpoint, config, state)
        if wrapped_model.scaler is not None and state.scaler:
            wrapped_model.scaler.load_state_dict(state.scaler)
    length = config.model.context_length
    schedule = state.schedule(length)
    components = TrainingComponents(
        runtime=runtime,
        data=data,
        model=model,
        adapter=loaded.adapter,
        optimizer=optimizer,
        wrapped_model=wrapped_model,
        loader=BatchLoader(data.train, context_length=length, schedule=schedule, seed=config.train.seed),
        schedule=schedule,
        state=state,
        compile_seconds=calibration.compile_seconds,
    )
    if ranks.is_main_process:
        _write_records(run, config, components)
    return components


def _load_optimizer(
    optimizer: torch.optim.Optimizer, model: GPT, found: Checkpoint, config: RunConfig, state: TrainState
) -> None:
    """Put back the saved state; none exists before the first applied update, and another optimizer begins without."""
    if "optimizer" in changed_settings(found, config):
        logger.info("the optimizer %s starts without state", config.optim.optimizer)
        return
    tensors = found.tensors(checkpoint.OPTIMIZER)
    if tensors or state.applied_updates:
        try:
            load_state_tensors(optimizer, model, tensors, config.optim)
        except CheckpointError as error:
            remedy = "use another checkpoint of the run, or another --out for a new run"
            raise CheckpointError(f"{found.path / checkpoint.OPTIMIZER}: {error}; {remedy}") from None


def _plan_batches(state: TrainState, ramp: str, runtime: Runtime) -> None:
    """Keep the batch sizes of past steps and plan those of the steps to come."""
    done = (
        [(0, state.global_batch_size), *((step, size) for step, size in state.global_batch_size_changes)]
        if state.step
        else []
    )
    planned = batch_plan(ramp, batch_size=runtime.global_batch_size, steps=runtime.steps)
    (_, state.global_batch_size), *changes = merged_plan(done, planned, state.step)
    state.global_batch_size_changes = [list(stage) for stage in changes]


def _write_records(run: RunDirectory, config: RunConfig, components: TrainingComponents) -> None:
    """Write config.toml and environment.json, and cut the metrics back to the step that the run continues from."""
    data, runtime = components.data, components.runtime
    environment = {
        "command": sys.argv,
        "commit": _commit(),
        "code": code_fingerprint(),
        "quillgpt": version("quillgpt"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "processor": cpu_name(),
        "runtime": dataclasses.asdict(runtime),
        "parameters": parameter_count(components.model.config),
        "steps": runtime.steps,
        "compile_seconds": components.compile_seconds,
        "data": {
            "directory": str(data.directory),
            "fingerprint": data.train.fingerprint,
            "source": data.train.source,
            "licence": data.train.licence,
            "tokenizer": data.tokenizer.name,
            "vocab_size": data.tokenizer.vocab_size,
            "train_tokens": data.train.token_count,
            "val_tokens": data.validation.target_count,
        },
    }
    files.write_text(run.config, config_toml(config))
    files.write_json(run.environment, environment)
    if components.state.step:
        cut_metrics(run.metrics, components.state.step)
    elif read_metrics(run.metrics):
        logger.warning("%s: lines of a run without checkpoints; kept as %s", run.metrics, files.set_aside(run.metrics))


def _commit() -> str:
    """Return the commit of the running code, if it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
