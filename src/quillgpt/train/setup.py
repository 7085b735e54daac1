"""Everything a run works with, made from its settings or from the checkpoint it continues."""

import contextlib
import dataclasses
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from quillgpt import checkpoint, files
from quillgpt.checkpoint import Checkpoint
from quillgpt.config import RunConfig
from quillgpt.data.loader import BatchLoader, BatchSchedule
from quillgpt.distributed import Ranks, first_goes_first, from_first
from quillgpt.errors import CheckpointError
from quillgpt.evaluate.results import code_fingerprint
from quillgpt.hardware import cpu_name
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import parameter_count
from quillgpt.optim import build_optimizer, load_state_tensors
from quillgpt.pretrained.adapted import Adapter
from quillgpt.run_dir import RUNS, RunDirectory, config_toml, cut_metrics
from quillgpt.train.batch_ramp import continued, pieces, smallest_rows
from quillgpt.train.calibrate import fastest_threads, steps_for_minutes
from quillgpt.train.open_data import Data, open_data
from quillgpt.train.progress import Screen
from quillgpt.train.resolve import Choices, check_rows
from quillgpt.train.resume import Position, check_changes, former_choices, read_position
from quillgpt.train.starting_model import starting_model
from quillgpt.train.starting_point import starting_point
from quillgpt.train.update import Wrapped, wrap_or_fall_back

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop works with."""

    choices: Choices
    data: Data
    model: GPT
    adapter: Adapter | None
    optimizer: torch.optim.Optimizer
    wrapped: Wrapped
    loader: BatchLoader
    schedule: BatchSchedule
    position: Position
    compile_seconds: float
    reasons: Mapping[str, str]
    """of choices that were made again here, by measuring"""


@contextlib.contextmanager
def opened_run(out: str, ranks: Ranks) -> Iterator[RunDirectory]:
    """The run's directory, locked by rank 0 for the length of the block and free of what a killed save left."""
    run = RunDirectory(RUNS / "run" if out == "auto" else Path(out))
    if not ranks.is_first:
        yield run
        return
    files.make_directory(run.checkpoints)
    with files.locked(run.path):
        files.remove_leftovers(run.path)
        files.remove_leftovers(run.checkpoints)
        yield run


def set_up(run: RunDirectory, config: RunConfig, choices: Choices, ranks: Ranks, screen: Screen) -> Parts:
    """Data, model, optimizer and loader: new ones, or those of the run's newest intact checkpoint."""
    say = screen.say
    found = checkpoint.newest_intact(run, say)
    if found is not None and config.train.fresh:
        raise CheckpointError(
            f"{run.path} already holds a run at step {found.step}; leave out --fresh, or choose --out"
        )
    source = starting_point(config, found)
    if source is not None and found is None:
        say(f"starting from the weights of {source.name}")
        with first_goes_first(ranks):  # rank 0 fetches a published model
            source.check(dataclasses.replace(config.model, vocab_size=source.config.vocab_size))
    data = open_data(config, source, ranks, screen)
    choices = dataclasses.replace(choices, rows=from_first(choices.rows, ranks, torch.device(choices.device)))
    position, choices = _begin(config, choices, found, data, say)
    check_rows(smallest_rows(config.train.batch_ramp, choices.rows), ranks)
    _check_same_start(run, position, choices, ranks)
    set_up_torch(choices.device, threads=choices.threads, matmul_precision=choices.matmul_precision)
    shape = dataclasses.replace(config.model, vocab_size=data.tokenizer.vocab_size)
    model, adapter = starting_model(config, shape, choices.device, source, found)
    reasons: dict[str, str] = {}
    if _measures_threads(config, position, choices):
        threads, reasons["threads"] = fastest_threads(config, choices, model)
        choices = dataclasses.replace(choices, threads=threads)
        torch.set_num_threads(threads)
    position.steps = _steps(config, position, choices, ranks, model, data, say)
    _follow_ramp(position, config.train.batch_ramp, choices.rows)
    started = time.perf_counter()
    wrapped, choices = wrap_or_fall_back(model, choices, ranks, say)
    compile_seconds = time.perf_counter() - started if choices.compile else 0.0
    optimizer = build_optimizer(model, config.optim)
    if found is not None:
        load_state_tensors(optimizer, model, found.tensors(checkpoint.OPTIMIZER).items())
        if wrapped.scaler is not None and position.scaler:
            wrapped.scaler.load_state_dict(position.scaler)
    schedule = position.schedule(config.model.context_length)
    loader = BatchLoader(
        data.train, context_length=config.model.context_length, schedule=schedule, seed=config.train.seed
    )
    if ranks.is_first:
        _write_records(run, config, choices, position, data, model, compile_seconds)
    return Parts(
        choices=choices,
        data=data,
        model=model,
        adapter=adapter,
        optimizer=optimizer,
        wrapped=wrapped,
        loader=loader,
        schedule=schedule,
        position=position,
        compile_seconds=compile_seconds,
        reasons=reasons,
    )


def _begin(
    config: RunConfig, choices: Choices, found: Checkpoint | None, data: Data, say: Say
) -> tuple[Position, Choices]:
    """Where the run stands and what it computes with; a changed batch size begins at this step."""
    if found is None:
        return Position(rows=choices.rows), choices
    say(f"continuing {found.path}")
    changes = check_changes(found, config, data_fingerprint=data.train.fingerprint, say=say)
    choices = former_choices(found, choices, changes, say)
    position = read_position(found)
    if {"steps", "minutes"} & changes.keys():
        position.steps = 0  # to be decided again
    if "stop_at_loss" in changes:
        position.has_reached_loss = False
    return position, choices


def _follow_ramp(position: Position, ramp: str, rows: int) -> None:
    """Keep the batches of the steps that are done, and plan those that follow, now that all steps are known."""
    done = [(0, position.rows), *((step, size) for step, size in position.row_changes)] if position.step else []
    (_, position.rows), *changes = continued(done, pieces(ramp, rows=rows, steps=position.steps), position.step)
    position.row_changes = [list(piece) for piece in changes]


def _check_same_start(run: RunDirectory, position: Position, choices: Choices, ranks: Ranks) -> None:
    """Refuse ranks that found another checkpoint than rank 0, as on nodes that do not share the run directory."""
    step = from_first(position.step, ranks, torch.device(choices.device))
    if step != position.step:
        found = f"rank 0 continues from step {step}, rank {ranks.rank} from step {position.step}"
        raise CheckpointError(f"{run.path}: {found}; put --out where all nodes see the same files")


def _measures_threads(config: RunConfig, position: Position, choices: Choices) -> bool:
    """Whether the number of threads is measured: where the number of steps is, which makes the bits depend on it too.

    A run of a stated number of steps repeats itself bit for bit, and so does one that continues.
    """
    is_new = position.step == 0 and position.steps == 0
    is_alone = choices.world_size == 1 and choices.device == "cpu" and not choices.compile
    return bool(config.train.minutes) and not config.train.threads and is_new and is_alone and choices.threads > 1


def _steps(
    config: RunConfig, position: Position, choices: Choices, ranks: Ranks, model: GPT, data: Data, say: Say
) -> int:
    """The step to train to: the checkpoint's, as asked, or as many as fit into the minutes from here."""
    if position.steps:
        return position.steps
    if not config.train.minutes:
        return config.train.steps
    steps = steps_for_minutes(config, choices, model, data, position.step) if ranks.is_first else 0
    steps = position.step + from_first(steps, ranks, torch.device(choices.device))
    say(f"{config.train.minutes:g} minutes are about {steps - position.step:,} steps here; training to step {steps:,}")
    return steps


def set_up_torch(device: str, *, threads: int, matmul_precision: str) -> None:
    """The process-wide settings that change bits: threads, TF32, and on a CPU deterministic algorithms."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul_precision)
    if device == "cpu":
        torch.use_deterministic_algorithms(True)
        # Filling new memory costs time and is not what determinism needs. (A property the type checker cannot see.)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore


def _write_records(
    run: RunDirectory,
    config: RunConfig,
    choices: Choices,
    position: Position,
    data: Data,
    model: GPT,
    compile_seconds: float,
) -> None:
    """config.toml and environment.json, and the metrics cut back to the step the run continues from."""
    files.write_text(run.config, config_toml(config))
    files.write_json(
        run.environment,
        {
            "command": sys.argv,
            "commit": _commit(),
            "code": code_fingerprint(),
            "quillgpt": version("quillgpt"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "system": platform.platform(),
            "processor": cpu_name(),
            "choices": dataclasses.asdict(choices),
            "parameters": parameter_count(model.config),
            "steps": position.steps,
            "compile_seconds": compile_seconds,
            "data": {
                "directory": str(data.directory),
                "fingerprint": data.train.fingerprint,
                "source": data.train.source,
                "licence": data.train.licence,
                "tokenizer": data.tokenizer.name,
                "vocab_size": data.tokenizer.vocab_size,
                "train_tokens": data.train.token_count,
                "held_out_tokens": data.held_out.target_count,
            },
        },
    )
    if run.metrics.exists():
        cut_metrics(run.metrics, position.step)


def _commit() -> str:
    """The commit of the code that runs, where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
