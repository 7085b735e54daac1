"""The report as text in a terminal, figures as characters; needs no matplotlib."""

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from quillgpt.report.characters import LETTERS, Drawing, style_of
from quillgpt.report.contents import Contents, RunPart, chosen_samples
from quillgpt.report.plot import Plot
from quillgpt.report.tables import Table

PROSE_WIDTH = 92
MAIN_HEIGHT, SMALL_HEIGHT = 12, 6
WIDE_ENOUGH = 72  # for two small figures beside each other
SAMPLE_LINES = 8
MOST_COLUMNS = 3  # of runs beside each other in a narrow terminal
MEANING = "Curves are weighted means of neighbouring logged lines; marks on them are held-out losses."


def print_report(console: Console, contents: Contents) -> None:
    """Print all of it but the settings, which `quill train RUN/config.toml --dry-run` explains."""
    console.print()
    console.print(Text(contents.title, style="bold"))
    _prose(console, contents.lead)
    for card_line in _cards(contents):
        console.print(card_line)
    if len(contents.runs) == 1:
        _table(console, contents.runs[0].overview)
    else:
        _table(console, headline_for(console.width, contents.headline))
        _table(console, contents.differences)
    _table(console, contents.compressors)
    for sentence in [*contents.comparison, *contents.bands]:
        _prose(console, sentence)
    _section(console, "Curves")
    _legend(console, contents.runs)
    _figures(console, contents.figures)
    _prose(console, MEANING, style="dim")
    if contents.scores.rows:
        _section(console, "Task scores")
        _figures(console, contents.score_figures)
        _table(console, contents.scores)
    if contents.statistics:
        _section(console, "Range of the attention: a line is a layer")
        _figures(console, contents.statistics)
    _section(console, "Samples")
    for run in contents.runs:
        _samples(console, run, is_named=len(contents.runs) > 1)
    _section(console, "Environment")
    _table(console, contents.environment)


def _section(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    console.print(Text(("-" if console.options.ascii_only else "─") * min(console.width, PROSE_WIDTH), style="dim"))


def _prose(console: Console, text: str, style: str = "") -> None:
    if text:
        console.print(Padding(Text(text, style=style), (0, 0, 1, 0)), width=min(console.width, PROSE_WIDTH))


def _cards(contents: Contents) -> list[RenderableType]:
    """The numbers that a reader wants first, one line each."""
    if not contents.cards:
        return []
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(style="bold", justify="right")
    grid.add_column(style="dim")
    for card in contents.cards:
        grid.add_row(card.name, f"{card.value} {card.error}".strip(), card.unit)
    return [grid, Text()]


def _table(console: Console, table: Table) -> None:
    if not table.rows:
        return
    shown = RichTable(box=None, title=Text(table.caption, style="bold"), title_justify="left", padding=(0, 2, 0, 0))
    shown.show_header = any(table.columns)
    for index, name in enumerate(table.columns):
        justify = "right" if index in table.numbers else "left"
        shown.add_column(Text(name, style="dim"), justify=justify, style="dim" if index == 0 else "", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown)
    if table.note:
        _prose(console, table.note, style="dim")
    else:
        console.print()


def headline_for(width: int, table: Table) -> Table:
    """The first numbers of the runs; in a narrow terminal a column a run, or only some of the numbers."""
    if width >= 110:
        return table
    if len(table.rows) <= MOST_COLUMNS:
        first, *others = zip(table.columns, *table.rows, strict=True)
        numbers = tuple(range(1, len(first)))
        return replace(table, columns=["", *first[1:]], rows=[list(row) for row in others], numbers=numbers)
    kept = [0, 1, 3, 6]
    rows = [[row[column] for column in kept] for row in table.rows]
    return replace(table, columns=[table.columns[column] for column in kept], rows=rows, numbers=(1, 2, 3))


def _legend(console: Console, runs: Sequence[RunPart]) -> None:
    """Which colour, or where there is only ASCII which letter, is which run."""
    if len(runs) < 2:
        return
    for run in runs:
        mark = LETTERS[run.number % len(LETTERS)] * 2 if console.options.ascii_only else "━━"
        console.print(Text.assemble((mark, style_of(run.number)), " ", run.label))
    console.print()


def _figures(console: Console, plots: Sequence[Plot]) -> None:
    """The main figure over the whole width, the others in pairs where two fit."""
    width = min(console.width, 2 * PROSE_WIDTH)
    for plot in [plot for plot in plots if plot.is_main]:
        console.print(Drawing(plot, MAIN_HEIGHT), width=min(width, PROSE_WIDTH))
        console.print()
    small = [plot for plot in plots if not plot.is_main]
    columns = 2 if width >= WIDE_ENOUGH else 1
    for start in range(0, len(small), columns):
        grid = RichTable.grid(padding=(0, 1), expand=True)
        for _ in range(columns):
            grid.add_column(ratio=1)
        cells: list[RenderableType] = [Drawing(plot, SMALL_HEIGHT) for plot in small[start : start + columns]]
        grid.add_row(*cells, *[""] * (columns - len(cells)))
        console.print(grid, width=width)
        console.print()


def _samples(console: Console, run: RunPart, *, is_named: bool) -> None:
    """The beginning of the first, the middle and the last."""
    if is_named:
        console.print(Text(run.label, style="bold"))
    if not run.samples:
        _prose(console, "None were written while it trained (--sample-every N writes some).", style="dim")
    for sample in chosen_samples(run.samples):
        lines = sample.texts[0].strip("\n").split("\n")
        more = ["..."] if len(lines) > SAMPLE_LINES else []
        console.print(Text(f"step {sample.step:,}", style="dim"))
        console.print(Padding(Text("\n".join(lines[:SAMPLE_LINES] + more)), (0, 0, 1, 2)))
