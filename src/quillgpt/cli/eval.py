"""`quill eval MODEL ...`: how good a model is, on validation text and on tasks, with standard errors.

The table goes to standard output, messages and progress to standard error; with --json the results are JSON. The table
has a row for each model and a group of columns for each task, as many next to each other as fit.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from quillgpt.cli.arguments import flag, parse
from quillgpt.cli.console import messages, progress_display
from quillgpt.config import RunConfig, TrainConfig, meanings
from quillgpt.errors import pick, require
from quillgpt.progress import Progress, no_progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from quillgpt.distributed import Ranks
    from quillgpt.evaluate.model import EvaluationRequest
    from quillgpt.evaluate.results import Evaluation
    from quillgpt.progress import Progress

MEANINGS = meanings()
SHARED = ("limit", "eval_tokens", "device", "dtype", "threads", "batch_size", "batch_tokens")
"""options that are fields of the same name in `EvaluationRequest`"""
PIPE_COLUMNS = 140  # a pipe has no width of its own
GAP, TASK_GAP = 2, 4  # spaces between columns, and between tasks
TITLES = {"loss": "nats/token", "bits_per_byte": "bits/byte", "accuracy_norm": "normalized"}
"""titles of the scores whose own names do not say what they are"""
DIGITS = {"perplexity": 2}
"""decimal places; 4 for the other scores"""


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Evaluate models on validation text and on tasks, in one table; docs/evaluation.md explains each number.

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
    from quillgpt.evaluate.model import open_evaluated_model
    from quillgpt.evaluate.run import evaluate_models
    from quillgpt.run_dir import newest_run

    request = _request(options)
    models = [open_evaluated_model(model) for model in options.models or (str(newest_run()),)]
    return _run(lambda ranks, progress: evaluate_models(models, request, ranks, progress), as_json=options.json)


def evaluate_run(config: RunConfig) -> int:
    """Run `quill train RECIPE --eval-only`: evaluate the run's model, and print the same table."""
    from quillgpt.evaluate.run import evaluate_only

    return _run(lambda ranks, progress: evaluate_only(config, ranks, progress), as_json=False)


def _run(evaluate: Callable[["Ranks", "Progress"], list["Evaluation"]], *, as_json: bool) -> int:
    """Evaluate with progress on standard error, and print the results on the main process."""
    from quillgpt.distributed import ranks_from_environment

    ranks = ranks_from_environment()
    with progress_on_stderr(is_main_process=ranks.is_main_process) as progress:
        found = evaluate(ranks, progress)
    if ranks.is_main_process and as_json:
        print(json.dumps([evaluation.to_json() for evaluation in found], indent=2, ensure_ascii=False))
    elif ranks.is_main_process:
        print_table(found)
    return 0


@contextmanager
def progress_on_stderr(*, is_main_process: bool) -> Iterator[Progress]:
    """Show progress on standard error; on other ranks than the main process, show neither progress nor messages."""
    if not is_main_process:
        with messages(is_shown=False):
            yield no_progress
        return
    with progress_display() as progress:
        yield progress


def _check(options: EvalOptions) -> None:
    """Refuse invalid values before torch is imported."""
    for name in ("eval_tokens", "limit", "threads", "batch_tokens", "batch_size"):
        require(name, getattr(options, name), 0 <= getattr(options, name) < 2**31, "0 or more")
    is_one = not (options.batch_size and options.batch_tokens)
    require("batch_size", options.batch_size, is_one, "0 if batch_tokens is given")
    pick(dict.fromkeys(("auto", "fp32", "bf16", "fp16")), options.dtype, "dtype")
    pick(dict.fromkeys(("strict", "replace")), options.errors, "errors")
    require("out", options.out, options.out != "", "a directory")


def _request(options: EvalOptions) -> "EvaluationRequest":
    from quillgpt.evaluate.model import EvaluationRequest
    from quillgpt.evaluate.run import requested_tasks
    from quillgpt.evaluate.text import EvaluationData, parse_splits

    has_loss, tasks = requested_tasks(options.tasks)
    return EvaluationRequest(
        has_loss=has_loss,
        tasks=tuple((task, limit or options.limit) for task, limit in tasks),
        harness=tuple(name.strip() for name in options.harness.split(",")) if options.harness else (),
        splits=tuple(parse_splits(options.splits)),
        data=EvaluationData(path=options.data, errors=options.errors) if options.data else None,
        task_data=Path(options.data_dir),
        out="" if options.out == "auto" else options.out,
        **{name: getattr(options, name) for name in SHARED},
    )


@dataclass(frozen=True)
class Column:
    """A score: its title, its value for each model, and the values that others published for some of them."""

    title: str
    cells: dict[str, str]
    published: dict[str, str]

    @property
    def parts(self) -> list[tuple[str, dict[str, str], str]]:
        """Title, cells and style of the column, and of the column of published values if there are some."""
        return [(self.title, self.cells, ""), *([("published", self.published, "dim")] if self.published else [])]


@dataclass(frozen=True)
class TaskColumns:
    """The columns of one task, below its name."""

    task: str
    columns: list[Column]

    @property
    def parts(self) -> list[tuple[str, dict[str, str], str, int]]:
        """Title, cells, style and width of each column."""
        parts = [part for column in self.columns for part in column.parts]
        return [(title, cells, style, max(map(len, [title, *cells.values()]))) for title, cells, style in parts]

    @property
    def width(self) -> int:
        """Characters across."""
        return max(len(self.task), sum(width + GAP for *_, width in self.parts) - GAP)


def print_table(evaluations: Sequence["Evaluation"], console: "Console | None" = None) -> None:
    """Print the evaluations, and below them what was scored."""
    from rich.console import Console
    from rich.text import Text

    if console is None:
        console = Console(width=shutil.get_terminal_size(fallback=(PIPE_COLUMNS, 50)).columns, highlight=False)
    models = list(dict.fromkeys(evaluation.model.name for evaluation in evaluations))
    names = TaskColumns("", [Column("model", {model: model for model in models}, {})])
    for block in blocks(task_columns(evaluations), console.width - names.width - TASK_GAP):
        for line in _lines(models, [names, *block]):
            console.print(line, soft_wrap=True)
        console.print()
    for note in notes(evaluations):
        console.print(Text(note, style="dim"))


def task_columns(evaluations: Sequence["Evaluation"]) -> list[TaskColumns]:
    """Return the columns of each task, in the order of the evaluations."""
    found: dict[str, dict[str, Column]] = {}
    for evaluation in evaluations:
        name, result = evaluation.model.name, evaluation.result
        columns = found.setdefault(" ".join(part for part in (result.task.name, result.task.split) if part), {})
        for score, value in result.scores.items():
            digits, error = DIGITS.get(score, 4), result.standard_errors.get(score)
            column = columns.setdefault(score, Column(TITLES.get(score, score), {}, {}))
            column.cells[name] = f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
            if score in evaluation.published:
                column.published[name] = f"{evaluation.published[score]:g}"  # with the published number of digits
    return [TaskColumns(task, list(columns.values())) for task, columns in found.items()]


def blocks(groups: Sequence[TaskColumns], room: int) -> list[list[TaskColumns]]:
    """Return the groups that fit next to each other in the room; one that is wider than that is cut."""
    found: list[list[TaskColumns]] = []
    for group in groups:
        pieces = _cut(group, room)
        width = sum(other.width + TASK_GAP for other in found[-1]) + group.width if found else 0
        if found and len(pieces) == 1 and width <= room:
            found[-1].append(group)
        else:
            found += [[piece] for piece in pieces]
    return found


def _cut(group: TaskColumns, room: int) -> list[TaskColumns]:
    """The group in pieces that fit; a published value is in the piece of its score."""
    pieces: list[TaskColumns] = []
    for column in group.columns:
        if pieces and TaskColumns(group.task, [*pieces[-1].columns, column]).width <= room:
            pieces[-1].columns.append(column)
        else:
            pieces.append(TaskColumns(group.task, [column]))
    return pieces


def _lines(models: Sequence[str], block: Sequence[TaskColumns]) -> "Iterator[Text]":
    """Two lines of headings and one for each model."""
    from rich.text import Text

    def row(group: TaskColumns, cells: Sequence[tuple[str, str]]) -> Text:
        widths = [width for *_, width in group.parts]
        padded = [Text(cell.ljust(width), style) for (cell, style), width in zip(cells, widths, strict=True)]
        text = Text(" " * GAP).join(padded)
        text.pad_right(group.width - len(text))
        return text

    rows = [[Text(group.task.ljust(group.width), "bold") for group in block]]
    rows.append([row(group, [(title, "bold") for title, *_ in group.parts]) for group in block])
    for model in models:
        rows.append(
            [row(group, [(cells.get(model, ""), style) for _, cells, style, _ in group.parts]) for group in block]
        )
    for texts in rows:
        line = Text(" " * TASK_GAP).join(texts)
        line.rstrip()
        yield line


def notes(evaluations: Sequence["Evaluation"]) -> list[str]:
    """Return what was scored: the size and name of the text, or the items; with the models if it differs by model."""
    all_models = list(dict.fromkeys(evaluation.model.name for evaluation in evaluations))
    models: dict[str, list[str]] = {}
    for evaluation in evaluations:
        result, task = evaluation.result, evaluation.result.task
        if result.bytes:
            limit = f" (the first; --eval-tokens {task.limit})" if task.limit else ""
            what = f"{task.name} {task.split or 'text'}: {result.items:,} tokens, {result.bytes:,} bytes{limit}"
        else:
            items = f"{result.items:,} items" if result.items else "items"
            what = f"{task.name}: {items}{' (a fixed subset)' if task.limit else ''}"
        models.setdefault(f"{what} of {result.data.name}", []).append(evaluation.model.name)
    return [what if names == all_models else f"{what} ({', '.join(names)})" for what, names in models.items()]
