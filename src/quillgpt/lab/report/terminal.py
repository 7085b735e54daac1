"""The report as text in a terminal, with figures in characters; needs no matplotlib."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from quillgpt.ascii_plot import MARGIN, AsciiPlot
from quillgpt.lab.report.page import Report, chosen_samples
from quillgpt.lab.report.plot import Kind, Plot, colour_number
from quillgpt.lab.report.runs import ReportedRun
from quillgpt.lab.report.tables import Table, overview

PROSE_WIDTH = 92
MAIN_HEIGHT, SMALL_HEIGHT = 12, 6
WIDE_ENOUGH = 72  # for two small figures next to each other
SAMPLE_LINES = 8
MOST_COLUMNS = 3  # of runs next to each other in a narrow terminal
# readable on black and on white; rich takes the nearest if a terminal has few colours
COLOURS = ("#3a8fd0", "#e0702c", "#1fa67f", "#c875a8", "#b98a17", "default", "#4fb3e6")
LETTERS = "abcdefghijklmnopqrstuvwxyzAB"
MEANING = "Curves are weighted means of neighbouring logged lines; marks on them are validation losses."


def print_report(console: Console, report: Report) -> None:
    """Print all of it but the settings, which `quill train RUN/config.toml --dry-run` explains."""
    console.print()
    console.print(Text(report.title, style="bold"))
    _prose(console, report.lead)
    if report.cards:
        console.print(_cards(report))
        console.print()
    if len(report.runs) == 1:
        _table(console, overview(report.runs[0]))
    else:
        _table(console, headline_for(console.width, report.headline))
        _table(console, report.differences)
    _table(console, report.compressors)
    for sentence in [*report.comparison, *report.bands]:
        _prose(console, sentence)
    _section(console, "Curves")
    _legend(console, report.runs)
    _figures(console, report.figures)
    _prose(console, MEANING, style="dim")
    if report.scores.rows:
        _section(console, "Task scores")
        _figures(console, report.score_figures)
        _table(console, report.scores)
    if report.statistics:
        _section(console, "Range of the attention: a line is a layer")
        _figures(console, report.statistics)
    _section(console, "Samples")
    for run in report.runs:
        _samples(console, run, is_named=len(report.runs) > 1)
    _section(console, "Environment")
    _table(console, report.environment)


@dataclass(frozen=True)
class CharacterFigure:
    """A plot in characters as rich prints it, as wide as there is room, with title and caption."""

    plot: Plot
    height: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the rows."""
        plot = self.plot
        far = max((float(line.x.max()) for line in plot.lines), default=1.0)
        drawn = AsciiPlot(
            width=max(10, options.max_width - MARGIN),
            height=self.height,
            x_limits=(0.0, far),
            y_limits=plot.limits,
            is_logarithmic=plot.is_logarithmic,
            is_ascii=options.ascii_only,
        )
        for name, value in plot.levels.items():
            drawn.level(value, name)
        for area in plot.areas:
            if area.run < 0:  # a reference band
                drawn.band(area.x, area.low, area.high)
        has_curves = any(line.kind is Kind.STRONG for line in plot.lines)
        for line in plot.lines:
            style, letter = style_of(line.run)
            if line.kind is Kind.POINTS and has_curves:
                if plot.is_main:  # a small one has no room for them
                    drawn.points(line.x, line.y, style=style, letter=letter)
            elif line.kind is not Kind.FAINT:
                drawn.curve(line.x, line.y, style=style, letter=letter)
        yield Text(plot.title, style="bold", no_wrap=True, overflow="crop")
        yield from drawn.lines(plot.x_label)
        if plot.caption:
            yield Text(plot.caption, style="dim italic")


def style_of(run: int) -> tuple[str, str]:
    """The colour of a run, and its letter where there is only ASCII."""
    return COLOURS[colour_number(run)], LETTERS[run % len(LETTERS)]


def _section(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    console.print(Text(("-" if console.options.ascii_only else "─") * min(console.width, PROSE_WIDTH), style="dim"))


def _prose(console: Console, text: str, style: str = "") -> None:
    if text:
        console.print(Padding(Text(text, style=style), (0, 0, 1, 0)), width=min(console.width, PROSE_WIDTH))


def _cards(report: Report) -> RenderableType:
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(style="bold", justify="right")
    grid.add_column(style="dim")
    for card in report.cards:
        grid.add_row(card.name, f"{card.value} {card.error}".strip(), card.unit)
    return grid


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
    """The headline numbers; in a narrow terminal with a column for each run, or with some of the numbers only."""
    if width >= 110:
        return table
    if len(table.rows) <= MOST_COLUMNS:
        first, *others = zip(table.columns, *table.rows, strict=True)
        numbers = tuple(range(1, len(first)))
        return replace(table, columns=["", *first[1:]], rows=[list(row) for row in others], numbers=numbers)
    kept = [0, 1, 3, 6]
    rows = [[row[column] for column in kept] for row in table.rows]
    return replace(table, columns=[table.columns[column] for column in kept], rows=rows, numbers=(1, 2, 3))


def _legend(console: Console, runs: Sequence[ReportedRun]) -> None:
    if len(runs) < 2:
        return
    for run in runs:
        style, letter = style_of(run.number)
        console.print(Text.assemble((letter * 2 if console.options.ascii_only else "━━", style), " ", run.label))
    console.print()


def _figures(console: Console, plots: Sequence[Plot]) -> None:
    """The main figure over the full width, the others in pairs if two fit."""
    width = min(console.width, 2 * PROSE_WIDTH)
    for plot in [plot for plot in plots if plot.is_main]:
        console.print(CharacterFigure(plot, MAIN_HEIGHT), width=min(width, PROSE_WIDTH))
        console.print()
    small = [plot for plot in plots if not plot.is_main]
    columns = 2 if width >= WIDE_ENOUGH else 1
    for start in range(0, len(small), columns):
        grid = RichTable.grid(padding=(0, 1), expand=True)
        for _ in range(columns):
            grid.add_column(ratio=1)
        cells: list[RenderableType] = [CharacterFigure(plot, SMALL_HEIGHT) for plot in small[start : start + columns]]
        grid.add_row(*cells, *[""] * (columns - len(cells)))
        console.print(grid, width=width)
        console.print()


def _samples(console: Console, run: ReportedRun, *, is_named: bool) -> None:
    """The beginning of the first, the middle and the last."""
    if is_named:
        console.print(Text(run.label, style="bold"))
    if not run.samples:
        _prose(console, "None were written during training (--sample-every N writes some).", style="dim")
    for sample in chosen_samples(run.samples):
        lines = sample.texts[0].strip("\n").split("\n")
        more = ["..."] if len(lines) > SAMPLE_LINES else []
        console.print(Text(f"step {sample.step:,}", style="dim"))
        console.print(Padding(Text("\n".join(lines[:SAMPLE_LINES] + more)), (0, 0, 1, 2)))
