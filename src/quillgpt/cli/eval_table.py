"""The table of `quill eval`: a row for each model, a group of columns for each task, as many side by side as fit."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from quillgpt.evaluate.results import Evaluation

PIPE_COLUMNS = 140  # a pipe has no width of its own
GAP = 3
TITLES = {
    "loss": "nats/token",
    "bits_per_byte": "bits/byte",
    "accuracy_norm": "normalised",
}
"""how a score is called where its own name does not say it"""
DIGITS = {"perplexity": 2}
"""places behind the point; 4 for the others"""


@dataclass(frozen=True)
class Column:
    """One score of one task: its two headings, and a value, and what was published, for each model that has it."""

    task: str
    title: str
    cells: dict[str, str]
    published: dict[str, str]

    @property
    def width(self) -> int:
        """Characters across, the published values' column included."""
        longest = max(map(len, [self.title, self.task, *self.cells.values()]))
        return longest + (GAP + len("published") if self.published else 0)


def print_table(evaluations: Sequence["Evaluation"], console: "Console | None" = None) -> None:
    """Print the evaluations, and below them what the numbers are of."""
    from rich.console import Console
    from rich.text import Text

    if console is None:
        console = Console(width=shutil.get_terminal_size(fallback=(PIPE_COLUMNS, 50)).columns, highlight=False)
    models = list(dict.fromkeys(evaluation.model.name for evaluation in evaluations))
    room = console.width - max(map(len, [*models, "model"])) - GAP
    for number, block in enumerate(blocks(columns(evaluations), room)):
        if number:
            console.print()
        console.print(_table(models, block))
    console.print()
    for note in notes(evaluations):
        console.print(Text(note, style="dim"))


def columns(evaluations: Sequence["Evaluation"]) -> list[Column]:
    """The columns, in the order in which the tasks were asked for."""
    found: dict[tuple[str, str], Column] = {}
    for evaluation in evaluations:
        for score, value in evaluation.scores.items():
            task = " ".join(part for part in (evaluation.task.name, evaluation.task.split) if part)
            column = found.setdefault((task, score), Column(task, TITLES.get(score, score), {}, {}))
            digits = DIGITS.get(score, 4)
            name = evaluation.model.name
            error = evaluation.standard_errors.get(score)
            column.cells[name] = f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
            if score in evaluation.published:
                column.published[name] = _published(evaluation.published[score])
    return list(found.values())


def blocks(columns: Sequence[Column], room: int) -> list[list[Column]]:
    """The columns in groups that fit into the room; a task's columns stay together where they can."""
    tasks: dict[str, list[Column]] = {}
    for column in columns:
        tasks.setdefault(column.task, []).append(column)
    found: list[list[Column]] = [[]]
    for of_task in tasks.values():
        pieces = [of_task] if _across(of_task) <= room else [[column] for column in of_task]
        for piece in pieces:
            if found[-1] and _across([*found[-1], *piece]) > room:
                found.append([])
            found[-1] += piece
    return found


def notes(evaluations: Sequence["Evaluation"]) -> list[str]:
    """What was scored: the text's size and place, or the items; with the models where it differs between them."""
    everyone = list(dict.fromkeys(evaluation.model.name for evaluation in evaluations))
    models: dict[str, list[str]] = {}
    for evaluation in evaluations:
        task, data = evaluation.task, evaluation.data.name
        if evaluation.bytes:
            limit = f" (the first; --eval-tokens {task.limit})" if task.limit else ""
            what = f"{task.name} {task.split or 'text'}: {evaluation.items:,} tokens, {evaluation.bytes:,} bytes{limit}"
        else:
            items = f"{evaluation.items:,} items" if evaluation.items else "items"
            what = f"{task.name}: {items}{' (a fixed subset)' if task.limit else ''}"
        models.setdefault(f"{what} of {data}", []).append(evaluation.model.name)
    return [what if names == everyone else f"{what} ({', '.join(names)})" for what, names in models.items()]


def _table(models: Sequence[str], block: Sequence[Column]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    table.add_column(Text("\nmodel"), no_wrap=True)
    former = ""
    for column in block:
        table.add_column(Text(f"{column.task if column.task != former else ''}\n{column.title}"), no_wrap=True)
        if column.published:
            table.add_column(Text("\npublished"), style="dim", no_wrap=True)
        former = column.task
    for model in models:
        cells: list[Text] = [Text(model)]
        for column in block:
            cells.append(Text(column.cells.get(model, "")))
            if column.published:
                cells.append(Text(column.published.get(model, "")))
        table.add_row(*cells)
    return table


def _across(columns: Sequence[Column]) -> int:
    return sum(column.width + GAP for column in columns) - GAP


def _published(value: float) -> str:
    """As many places as were published."""
    return f"{value:g}"
