"""Training until a held-out loss is reached: seconds of training, of compiling and of evaluating, each apart.

A run in a temporary directory does it, by the setting `stop_at_loss`. Judged are all held-out tokens: those of the
recipe's own data, or a text that is named, the same for both sides.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from quillgpt import checkpoint, files
from quillgpt.bench.machine import nothing_compiled_before
from quillgpt.bench.windows import Spread
from quillgpt.config import RunConfig, updated
from quillgpt.data.held_out import HeldOutWindows
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, DataError, Interrupted, NonFiniteError, Stopped, require
from quillgpt.evaluate.held_out_loss import HeldOutLoss
from quillgpt.evaluate.held_out_text import ALL_TOKENS, NamedData
from quillgpt.hardware import detect
from quillgpt.run_dir import RunDirectory
from quillgpt.run_record import read_run
from quillgpt.tokenizer import load_tokenizer
from quillgpt.train.loop import train
from quillgpt.train.open_data import Data
from quillgpt.train.progress import Screen
from quillgpt.train.resolve import resolve
from quillgpt.train.resume import Position, read_position


@dataclass(frozen=True, kw_only=True)
class Reached:
    """How a run ended. Seconds of training are of steps alone; `bits_per_byte` compares what tokenizers make unlike.

    `loss` is NaN where the run diverged.
    """

    name: str
    seed: int
    reached: bool
    loss: float
    bits_per_byte: float
    held_out_tokens: int
    steps: int
    tokens: int
    training_seconds: float
    compile_seconds: float
    evaluation_seconds: float

    @property
    def seconds(self) -> float:
        """Training and compiling."""
        return self.training_seconds + self.compile_seconds


def times_to_loss(
    sides: Sequence[tuple[str, RunConfig]],
    *,
    loss: float,
    text: NamedData | None,
    seeds: int,
    folder: Path,
    screen: Screen,
) -> list[list[Reached]]:
    """The runs of each side, one for each of so many consecutive seeds; the sides take turns, seed by seed.

    loss: nats per token. `folder` is a temporary one; each run's directory is emptied when it has ended.
    """
    require("loss", loss, math.isfinite(loss) and loss > 0, "a number of nats above 0")
    require("seeds", seeds, 1 <= seeds <= 1000, "1 to 1,000")
    found: list[list[Reached]] = [[] for _ in sides]
    for turn in range(seeds):
        order = range(len(sides)) if turn % 2 == 0 else reversed(range(len(sides)))
        for number in order:
            name, config = sides[number]
            seed = config.train.seed + turn
            changes = {"seed": seed, "stop_at_loss": loss, "eval_tokens": ALL_TOKENS, "eval_iters": 0}
            own = folder / f"{number}-{seed}"
            screen.say(f"{name}, seed {seed}")
            ready = updated(config, {**changes, "out": str(own / "run"), "track": "none"}, where="quill bench")
            found[number].append(_time_to_loss(name, ready, text, own, screen))
    return found


def _time_to_loss(name: str, config: RunConfig, text: NamedData | None, folder: Path, screen: Screen) -> Reached:
    files.make_directory(folder)

    def judge(data: Data) -> HeldOutWindows:
        if text is None:
            return data.held_out
        scored = text.split("val", data.tokenizer, folder / "text", 0)
        return scored.windows(config.model.context_length, 0)

    run = RunDirectory(Path(config.train.out))
    held_out: HeldOutLoss | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_nothing_kept())
        if resolve(config, detect(), Ranks())[0].compile:
            torch.compiler.reset()  # what the run before compiled
            stack.enter_context(nothing_compiled_before(folder))
        stack.enter_context(contextlib.suppress(NonFiniteError))  # told by its loss, which is none
        held_out = train(config, screen, judge=judge).held_out
    position = _position(run)
    reached = Reached(
        name=name,
        seed=config.train.seed,
        reached=position.has_reached_loss,
        loss=held_out.loss if held_out else math.nan,
        bits_per_byte=held_out.bits_per_byte if held_out else math.nan,
        held_out_tokens=held_out.tokens if held_out else 0,
        steps=position.step,
        tokens=position.tokens,
        training_seconds=position.elapsed_seconds,
        compile_seconds=float(read_run(run.path).environment["compile_seconds"]),
        evaluation_seconds=position.evaluation_seconds,
    )
    files.remove_directory(folder)
    return reached


def _position(run: RunDirectory) -> Position:
    """Where the run stood when it was last saved; of one that diverged at once, before its first step."""
    saved = checkpoint.newest_intact(run, lambda text: None)
    return read_position(saved) if saved is not None else Position()


@contextlib.contextmanager
def _nothing_kept() -> Iterator[None]:
    """A run that is ended from outside does not promise to be continued: its directory is a temporary one."""
    try:
        yield
    except (Interrupted, Stopped) as error:
        raise type(error)("stopped before the loss was reached; nothing is kept") from None


def judging_text(path: str, folder: Path) -> NamedData:
    """The text that judges; one that is missing, empty or not UTF-8 is told before anything is trained."""
    try:
        text = NamedData(path=path)
        text.split("val", load_tokenizer("byte"), folder / "text", 0)
    except (ConfigError, DataError) as error:
        told = str(error).replace("--data", "--text").replace(" or add --errors replace", "")
        raise type(error)(told) from None
    return text


def spread_of(runs: Sequence[Reached], value: Callable[[Reached], float]) -> Spread | None:
    """Median and quartiles over the seeds that reached the loss; None where not all did, because it would flatter."""
    return Spread.of([value(run) for run in runs]) if all(run.reached for run in runs) else None
