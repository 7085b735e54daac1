"""`quill eval MODEL ...`: how good a model is, on held-out text and on tasks, with standard errors.

The table goes to standard output and everything on the way to it to standard error; with --json the results as JSON.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from quillgpt.cli.arguments import flag, parse
from quillgpt.config import RunConfig, TrainConfig, meanings
from quillgpt.errors import pick, require

if TYPE_CHECKING:
    from quillgpt.evaluate.results import Evaluation
    from quillgpt.train.wanted import Wanted, Watcher

MEANINGS = meanings()


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Evaluate models on held-out text and on tasks, in one table; docs/evaluation.md explains each number.

    Results are kept as JSON in RUN/evaluations/ or evaluations/. Files of tasks are fetched once.
    """

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[MODEL ...]")] = ()
    """runs, checkpoints, gpt2 ... gpt2-xl, Hugging Face directories, ckpt.pt; nothing: the newest run under runs/"""
    tasks: str = "loss"
    """with commas: loss, hellaswag (-completion and -harness), lambada, piqa, arc-easy, arc-challenge, winogrande; \
NAME:200 takes a fixed subset of 200 items"""
    splits: str = "val"
    """splits of the text for loss: val, train, or train,val; of train as many tokens as of val, from its beginning"""
    data: str = ""
    """score another text: a directory of prepared tokens, a file, a folder or a glob; nothing: the model's own"""
    data_dir: Annotated[str, flag("directory with the files of the tasks")] = TrainConfig.task_data
    harness: str = ""
    """tasks of lm-evaluation-harness, with commas; needs quillgpt[harness]"""
    eval_tokens: int = 0
    """most tokens of the text to score; 0: all"""
    limit: int = 0
    """items of each task that has no number of its own; 0: all"""
    errors: Annotated[str, flag(MEANINGS["errors"])] = "strict"
    device: Annotated[str, flag(MEANINGS["device"])] = "auto"
    dtype: str = "auto"
    """auto, fp32, bf16 or fp16; auto: as the run trained on such a device, otherwise fp32"""
    threads: int = 0
    """CPU threads; 0: as the run trained, otherwise one for each core"""
    batch_tokens: int = 0
    """tokens in a pass; 0: as the run trained, otherwise 8,192"""
    batch_size: int = 0
    """sequences of full length in a pass, instead of batch_tokens"""
    out: str = "auto"
    """directory of the results"""
    json: bool = False
    """print the results as JSON instead of a table"""


def main(arguments: list[str]) -> int:
    """Run `quill eval`."""
    options, _ = parse(EvalOptions, arguments, prog="quill eval")
    _check(options)
    from quillgpt.distributed import ranks_from_environment
    from quillgpt.run_dir import newest_run
    from quillgpt.train.evaluate_model import evaluate_models
    from quillgpt.train.subject import open_subject

    wanted, ranks = _wanted(options), ranks_from_environment()
    subjects = [open_subject(model) for model in options.models or (str(newest_run()),)]
    with watcher(is_first=ranks.is_first) as watching:
        found = evaluate_models(subjects, wanted, ranks, watching)
    if ranks.is_first:
        show(found, as_json=options.json)
    return 0


def evaluate_run(config: RunConfig) -> int:
    """`quill train RECIPE --eval-only`: evaluate the run's model, and print the same table."""
    from quillgpt.distributed import ranks_from_environment
    from quillgpt.train.eval_only import evaluate_only

    ranks = ranks_from_environment()
    with watcher(is_first=ranks.is_first) as watching:
        found = evaluate_only(config, ranks, watching)
    if ranks.is_first:
        show(found, as_json=False)
    return 0


def show(evaluations: Sequence["Evaluation"], *, as_json: bool) -> None:
    """Print the evaluations: a table, or a list of objects of which each is the content of a result's file."""
    if as_json:
        print(json.dumps([evaluation.to_json() for evaluation in evaluations], indent=2, ensure_ascii=False))
        return
    from quillgpt.cli.eval_table import print_table

    print_table(evaluations)


@contextmanager
def watcher(*, is_first: bool) -> Iterator["Watcher"]:
    """Tell on standard error what goes on: a bar on a terminal, otherwise a line for each part; only the first rank."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    from quillgpt.train.wanted import Watcher

    if not is_first:
        yield Watcher()
        return
    console = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        console.print(Text(text, style="dim"), soft_wrap=True)

    if not console.is_terminal:
        yield Watcher(say=say, progress=_Lines().show)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("")
        yield Watcher(
            say=say,
            progress=lambda what, done, count: bars.update(bar, description=what, completed=done, total=count),
        )


class _Lines:
    """A line on standard error when something else begins."""

    def __init__(self) -> None:
        self._told = ""

    def show(self, what: str, done: int, count: int) -> None:
        """Print it where it is another thing than before."""
        if what != self._told:
            print(what, file=sys.stderr)
        self._told = what


def _check(options: EvalOptions) -> None:
    """Refuse numbers and names that cannot be, before torch is loaded."""
    for name in ("eval_tokens", "limit", "threads", "batch_tokens", "batch_size"):
        require(name, getattr(options, name), 0 <= getattr(options, name) < 2**31, "0 or more")
    require(
        "batch_size", options.batch_size, not (options.batch_size and options.batch_tokens), "0 beside batch_tokens"
    )
    pick(dict.fromkeys(("auto", "fp32", "bf16", "fp16")), options.dtype, "dtype")
    pick(dict.fromkeys(("strict", "replace")), options.errors, "errors")
    require("out", options.out, options.out != "", "a directory")


def _wanted(options: EvalOptions) -> "Wanted":
    from quillgpt.evaluate.asked_tasks import asked_tasks
    from quillgpt.evaluate.held_out_text import NamedData, chosen_splits
    from quillgpt.train.wanted import Wanted

    has_loss, tasks = asked_tasks(options.tasks)
    return Wanted(
        has_loss=has_loss,
        tasks=tuple((task, limit or options.limit) for task, limit in tasks),
        harness=tuple(name.strip() for name in options.harness.split(",")) if options.harness else (),
        limit=options.limit,
        splits=tuple(chosen_splits(options.splits)),
        data=NamedData(path=options.data, errors=options.errors) if options.data else None,
        task_data=Path(options.data_dir),
        eval_tokens=options.eval_tokens,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        batch_size=options.batch_size,
        batch_tokens=options.batch_tokens,
        out="" if options.out == "auto" else options.out,
    )
