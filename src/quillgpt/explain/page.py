"""A section of gpt2.py as a page: its code, and beside it or below it what the tiny run has there."""

from collections.abc import Mapping
from dataclasses import dataclass

from pygments.token import Comment, Keyword, Name, Number, Operator, String
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.syntax import ANSISyntaxTheme, Syntax
from rich.table import Table
from rich.text import Text

from quillgpt.explain.drawing import Shown
from quillgpt.explain.sections import FILE, Piece, Section

VALUES_WIDTH = 50
NUMBER_WIDTH = 6  # a line number with the space around it
PROSE_WIDTH = 92
THEME = ANSISyntaxTheme(  # the terminal's own colours, so that it can be read on any background
    {
        Comment: Style(color="cyan"),
        Keyword: Style(color="blue", bold=True),
        Keyword.Constant: Style(color="magenta"),
        Operator.Word: Style(color="blue", bold=True),
        Name.Function: Style(bold=True),
        Name.Class: Style(bold=True),
        Name.Decorator: Style(color="blue"),
        Number: Style(color="magenta"),
        String: Style(color="green"),
        String.Doc: Style(color="green", italic=True),
    }
)


def print_section(console: Console, section: Section, values: Mapping[str, Shown]) -> None:
    """Print a section; `values` are what to show at its pieces, by their names.

    Side by side where the console is wide enough; what is not a terminal gets plain lines that are never broken.
    """
    console.print()
    console.print(_heading(f"{section.number}  {section.title}", console), soft_wrap=True)
    console.print()
    if section.prose:
        console.print(Padding(Text(section.prose), (0, 0, 1, 1)), width=min(console.width, PROSE_WIDTH))
    is_wide = console.is_terminal and console.width >= code_width() + VALUES_WIDTH + 2
    for piece in section.pieces:
        shown = values.get(piece.name, [])
        if is_wide:
            console.print(_side_by_side(piece, shown))
        else:
            _print_stacked(console, piece, shown)
        console.print()


@dataclass(frozen=True)
class Marked:
    """Values below their code, with a line beside them."""

    values: Group

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As wide as beside the code, with the line in front."""
        mark = f"{' ' * NUMBER_WIDTH}{'|' if options.ascii_only else '│'} "
        for line in console.render_lines(self.values, options.update(width=VALUES_WIDTH), pad=False):
            yield Segment(mark, Style(dim=True))
            yield from line
            yield Segment.line()


def code_width() -> int:
    """The columns that the longest line of the file needs."""
    return max(map(len, FILE.read_text(encoding="utf-8").splitlines())) + NUMBER_WIDTH


def _heading(title: str, console: Console) -> Text:
    rule = "-" if console.options.ascii_only else "─"
    return Text.assemble((title, "bold"), "  ", (rule * max(0, console.width - len(title) - 2), "dim"))


def _side_by_side(piece: Piece, shown: Shown) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=code_width())
    table.add_column(width=VALUES_WIDTH, overflow="fold")
    table.add_row(_code(piece), Group(*shown))
    return table


def _print_stacked(console: Console, piece: Piece, shown: Shown) -> None:
    if console.is_terminal:
        console.print(_code(piece))
    else:
        for number, line in enumerate(piece.code.splitlines(), start=piece.first_line):
            console.print(Text(f"{number:>4} {line}".rstrip()), soft_wrap=True)
    if shown:
        console.print()
        console.print(Marked(Group(*shown)))


def _code(piece: Piece) -> RenderableType:
    return Syntax(
        piece.code,
        "python",
        theme=THEME,
        line_numbers=True,
        start_line=piece.first_line,
        background_color="default",
        word_wrap=True,
    )
