"""Time to a validation loss: seconds of training, of compiling and of evaluating, measured separately.

A run in a temporary directory stops by the setting `stop_at_loss`. The loss is over all validation tokens: those of the
recipe's own data, or of a given text, the same for all sides.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quillgpt import checkpoint, files
from quillgpt.checkpoint.init_from import init_source
from quillgpt.config import RunConfig, updated
from quillgpt.data.shards import MANIFEST, TOKENIZER, Shard, ShardRecord, open_shard, read_manifest, write_shard
from quillgpt.distributed import Ranks
from quillgpt.errors import CheckError, ConfigError, DataError, Interrupted, NonFiniteError, Stopped, require
from quillgpt.evaluate.loss import ValidationLoss
from quillgpt.evaluate.text import ALL_TOKENS, EvaluationData
from quillgpt.lab.bench.measure import Spread, fresh_compile_cache, turn_order
from quillgpt.lab.run_record import read_run
from quillgpt.progress import Progress
from quillgpt.run_dir import RunDirectory
from quillgpt.runtime import detect, resolve
from quillgpt.tokenizer import load_tokenizer
from quillgpt.training.loop import train
from quillgpt.training.screen import Screen
from quillgpt.training.setup import open_data
from quillgpt.training.state import TrainState, read_state

logger = logging.getLogger(__name__)

ALL_VALIDATED = {"eval_tokens": ALL_TOKENS, "eval_iters": 0, "track": "none"}


class EvaluationLog(Screen):
    """A screen that logs the evaluations of a run and shows the preparation of data."""

    def __init__(self, preparing: Callable[[], contextlib.AbstractContextManager[Progress]]) -> None:
        self.preparing = preparing

    def step(self, line: Mapping[str, Any]) -> None:
        """Log an evaluation."""
        if "val_loss" in line:
            figures = f"step {line['step']:>7,}  validation loss {line['val_loss']:.4f}"
            logger.info("  %s after %.1f s of training", figures, line["elapsed_seconds"])


@dataclass(frozen=True, kw_only=True)
class TimedRun:
    """The end of a run. seconds: training_seconds (of the steps) plus compile_seconds.

    loss, bits_per_byte: None for a run that diverged.
    """

    name: str
    seed: int
    reached: bool
    loss: float | None
    bits_per_byte: float | None
    val_tokens: int
    steps: int
    tokens: int
    seconds: float
    training_seconds: float
    compile_seconds: float
    evaluation_seconds: float


@dataclass(frozen=True, kw_only=True)
class TimeToLoss:
    """The runs of a side, one per seed. seconds: None unless all reached the loss, as it would be biased."""

    name: str
    reached: bool
    seconds: Spread | None
    runs: tuple[TimedRun, ...]


def measure_time_to_loss(
    sides: Sequence[tuple[str, RunConfig]],
    *,
    loss: float,
    text: EvaluationData | None,
    seeds: int,
    folder: Path,
    screen: Screen,
) -> list[TimeToLoss]:
    """Train the sides with `seeds` consecutive seeds, in turns, seed by seed.

    loss: nats per token. folder: a temporary directory; that of each run is deleted at the end of the run.
    """
    require("loss", loss, math.isfinite(loss) and loss > 0, "> 0, in nats per token; set it with --loss")
    require("seeds", seeds, 1 <= seeds <= 1000, "between 1 and 1,000")
    runs: list[list[TimedRun]] = [[] for _ in sides]
    for turn in range(seeds):
        for number in turn_order(len(sides), turn):
            name, config = sides[number]
            seed = config.train.seed + turn
            own = folder / f"{number}-{seed}"
            logger.info("%s, seed %s", name, seed)
            settings = {"seed": seed, "stop_at_loss": loss, "out": str(own / "run"), **ALL_VALIDATED}
            config = updated(config, settings, where="quill bench")
            files.make_directory(own)
            if text is not None:
                config = with_validation_text(config, text, own / "data", screen)
            runs[number].append(_timed_run(name, config, own, screen))
            files.remove_directory(own)
    return [_time_to_loss(name, done) for (name, _), done in zip(sides, runs, strict=True)]


def _time_to_loss(name: str, runs: Sequence[TimedRun]) -> TimeToLoss:
    reached = all(run.reached for run in runs)
    seconds = Spread.of([run.seconds for run in runs]) if reached else None
    return TimeToLoss(name=name, reached=reached, seconds=seconds, runs=tuple(runs))


def _timed_run(name: str, config: RunConfig, folder: Path, screen: Screen) -> TimedRun:
    run = RunDirectory(Path(config.train.out))
    validation: ValidationLoss | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_without_promise())
        if resolve(config, detect(), Ranks())[0].compile:
            torch.compiler.reset()  # or the code of the previous run would be reused
            stack.enter_context(fresh_compile_cache(folder))
        stack.enter_context(contextlib.suppress(NonFiniteError))  # reported as a loss of None
        validation = train(config, screen).validation
    saved = checkpoint.latest_intact(run)
    state = read_state(saved) if saved is not None else TrainState()
    compile_seconds = float(read_run(run.path).environment["compile_seconds"])
    return TimedRun(
        name=name,
        seed=config.train.seed,
        reached=state.has_reached_loss,
        loss=validation.loss if validation else None,
        bits_per_byte=validation.bits_per_byte if validation else None,
        val_tokens=validation.tokens if validation else 0,
        steps=state.step,
        tokens=state.tokens,
        seconds=state.elapsed_seconds + compile_seconds,
        training_seconds=state.elapsed_seconds,
        compile_seconds=compile_seconds,
        evaluation_seconds=state.evaluation_seconds,
    )


def check_reached(sides: Sequence[TimeToLoss], loss: float) -> None:
    """Raise `CheckError` if a run did not reach the loss."""
    runs = [run for side in sides for run in side.runs]
    missed = [run for run in runs if not run.reached]
    if missed:
        losses = [run.loss for run in missed if run.loss is not None]
        nearest = f" (the nearest at {min(losses):.4f})" if losses else ""
        ended = f"{len(missed)} of {len(runs)} runs ended above a validation loss of {loss:g}"
        raise CheckError(f"{ended}{nearest}; raise --steps, or --loss")


@contextlib.contextmanager
def _without_promise() -> Iterator[None]:
    """Shorten the message of a stopped run, which promises that it can be continued: its directory is temporary."""
    try:
        yield
    except (Interrupted, Stopped) as error:
        raise type(error)("stopped before the loss was reached; nothing is kept") from None


def validation_text(path: str, folder: Path) -> EvaluationData:
    """The text to validate on; a missing or empty one, or one that is not UTF-8, is refused before training."""
    try:
        text = EvaluationData(path=path)
        text.split("val", load_tokenizer("byte"), folder / "text", 0)
    except (ConfigError, DataError) as error:
        message = str(error).replace("--data", "--text").replace(" or add --errors replace", "")
        raise type(error)(message) from None
    return text


def with_validation_text(config: RunConfig, text: EvaluationData, folder: Path, screen: Screen) -> RunConfig:
    """The settings with data in the folder: the run's training split, and the text as its validation split.

    The validation split begins with an end of text, so that every token of the text is a target.
    """
    data = open_data(config, init_source(config), Ranks(), screen)
    scored = text.split("val", data.tokenizer, folder / "text", 0)
    before = np.array(scored.before, dtype=np.int64)
    vocabulary = {"vocab_size": data.tokenizer.vocab_size, "tokenizer_fingerprint": data.tokenizer.fingerprint}
    write_shard(folder / "before.bin", before, np.array([len(before)]), **vocabulary)
    _, first = open_shard(folder / "before.bin")
    val = [_record(shard) for shard in (first, *scored.dataset.shards)]
    val[0] = replace(val[0], text_bytes=scored.dataset.text_bytes)  # only the sum over the shards is used
    manifest = read_manifest(data.directory)
    train = [replace(one, file=str((data.directory / one.file).resolve())) for one in manifest.shards["train"]]
    manifest = replace(manifest, validation=text.path, shards={"train": train, "val": val})
    files.write_json(folder / MANIFEST, manifest.to_json())
    files.write_text(folder / TOKENIZER, (data.directory / TOKENIZER).read_text(encoding="utf-8"))
    return replace(config, data=replace(config.data, data=str(folder)))


def _record(shard: Shard) -> ShardRecord:
    return ShardRecord(
        file=str(shard.path.resolve()),
        tokens=len(shard.tokens),
        documents=len(shard.document_ends),
        text_bytes=0,
        file_bytes=shard.path.stat().st_size,
        sha256=files.file_sha256(shard.path),
    )
