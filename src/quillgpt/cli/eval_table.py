"""The table of `quill eval`: a row for each model, a group of columns for each task, as many side by side as fit."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from quillgpt.evaluate.results import Evaluation

PIPE_COLUMNS = 140  # a pipe has no width of its own
GAP, GAP_BETWEEN_TASKS = 2, 4
TITLES = {"loss": "nats/token", "bits_per_byte": "bits/byte", "accuracy_norm": "normalised"}
"""how a score is called where its own name does not say it"""
DIGITS = {"perplexity": 2}
"""places behind the point; 4 for the others"""


Cell = tuple[str, str]
"""text and style"""


@dataclass(frozen=True)
class Column:
    """A heading, and a cell for each model that has one; published values are dim."""

    title: str
    cells: dict[str, str]
    is_published: bool = False

    @property
    def style(self) -> str:
        """How its cells look."""
        return "dim" if self.is_published else ""

    @property
    def width(self) -> int:
        """Characters across."""
        return max(map(len, [self.title, *self.cells.values()]))


@dataclass(frozen=True)
class Group:
    """The columns of one task, below its name."""

    task: str
    columns: list[Column]

    @property
    def width(self) -> int:
        """Characters across."""
        return max(len(self.task), self.columns_width)

    @property
    def columns_width(self) -> int:
        """Characters across its columns alone."""
        return sum(column.width + GAP for column in self.columns) - GAP


def print_table(evaluations: Sequence["Evaluation"], console: "Console | None" = None) -> None:
    """Print the evaluations, and below them what the numbers are of."""
    from rich.console import Console
    from rich.text import Text

    if console is None:
        console = Console(width=shutil.get_terminal_size(fallback=(PIPE_COLUMNS, 50)).columns, highlight=False)
    models = list(dict.fromkeys(evaluation.model.name for evaluation in evaluations))
    names = Column("model", {model: model for model in models})
    for block in blocks(groups(evaluations), console.width - names.width - GAP_BETWEEN_TASKS):
        for line in _lines(models, [Group("", [names]), *block]):
            console.print(line, soft_wrap=True)
        console.print()
    for note in notes(evaluations):
        console.print(Text(note, style="dim"))


def groups(evaluations: Sequence["Evaluation"]) -> list[Group]:
    """The columns of each task, in the order in which the tasks were asked for."""
    values: dict[tuple[str, str], dict[str, str]] = {}
    published: dict[tuple[str, str], dict[str, str]] = {}
    for evaluation in evaluations:
        task = " ".join(part for part in (evaluation.task.name, evaluation.task.split) if part)
        for score, value in evaluation.scores.items():
            name, digits, error = evaluation.model.name, DIGITS.get(score, 4), evaluation.standard_errors.get(score)
            told = f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
            values.setdefault((task, score), {})[name] = told
            if score in evaluation.published:
                told = f"{evaluation.published[score]:g}"  # as many places as were published
                published.setdefault((task, score), {})[name] = told
    found: dict[str, Group] = {}
    for (task, score), cells in values.items():
        columns = found.setdefault(task, Group(task, [])).columns
        columns.append(Column(TITLES.get(score, score), cells))
        if (task, score) in published:
            columns.append(Column("published", published[task, score], is_published=True))
    return list(found.values())


def blocks(groups: Sequence[Group], room: int) -> list[list[Group]]:
    """The groups that stand side by side in the room; one that is too wide for it is cut into several."""
    found: list[list[Group]] = []
    for group in groups:
        pieces = _cut(group, room)
        is_whole = len(pieces) == 1
        if found and is_whole and sum(other.width + GAP_BETWEEN_TASKS for other in found[-1]) + group.width <= room:
            found[-1].append(group)
        else:
            found += [[piece] for piece in pieces]
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


def _cut(group: Group, room: int) -> list[Group]:
    """The group in pieces that fit, a published value in the piece of its score."""
    pieces: list[Group] = []
    columns = group.columns
    for i, column in enumerate(columns):
        if column.is_published:
            continue
        wanted = [column, *columns[i + 1 : i + 2]] if columns[i + 1 :] and columns[i + 1].is_published else [column]
        if pieces and Group(group.task, [*pieces[-1].columns, *wanted]).width <= room:
            pieces[-1].columns.extend(wanted)
        else:
            pieces.append(Group(group.task, wanted))
    return pieces


def _lines(models: Sequence[str], block: Sequence[Group]) -> "list[Text]":
    """Two lines of headings and one for each model."""
    tasks = _line([[(group.task.ljust(group.width), "bold")] for group in block])
    titles = _line([_row(group, [(column.title, "bold") for column in group.columns]) for group in block])
    rows = [
        _line(
            [_row(group, [(column.cells.get(model, ""), column.style) for column in group.columns]) for group in block]
        )
        for model in models
    ]
    return [tasks, titles, *rows]


def _row(group: Group, cells: Sequence[Cell]) -> list[Cell]:
    """The cells below a group's name, each as wide as its column."""
    row: list[Cell] = []
    for (text, style), column in zip(cells, group.columns, strict=True):
        row += [(text.ljust(column.width), style), (" " * GAP, "")]
    return [*row[:-1], (" " * (group.width - group.columns_width), "")]


def _line(groups: Sequence[Sequence[Cell]]) -> "Text":
    from rich.text import Text

    line = Text(" " * GAP_BETWEEN_TASKS).join(Text.assemble(*cells) for cells in groups)
    line.rstrip()
    return line
