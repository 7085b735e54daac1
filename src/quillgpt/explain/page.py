"""`quill explain`: gpt2.py cut into sections by its headings, each printed as code next to the values of a tiny run."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rich.console import Console, Group
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from quillgpt.explain.drawing import Shown

FILE = Path(__file__).with_name("gpt2.py")
HEADING = re.compile(r"# (\d+)\. ((\w+): .+)")
VALUES_WIDTH = 50
NUMBER_WIDTH = 6  # a line number with the space around it
PROSE_WIDTH = 92


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A function or class with its name, or the code between two of them, with the name ""."""

    name: str
    first_line: int
    code: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, the comment below it as one paragraph, and the code up to the next heading."""

    number: int
    name: str
    title: str
    prose: str
    pieces: tuple[Piece, ...]


def read_sections(source: str = "") -> list[Section]:
    """The sections of gpt2.py, or of another source; section 0 is what precedes the first heading."""
    source = source or FILE.read_text(encoding="utf-8")
    lines, statements = source.splitlines(), ast.parse(source).body
    starts = [number for number, line in enumerate(lines) if HEADING.fullmatch(line)]
    sections = []
    for first, end in pairwise([0, *starts, len(lines)]):  # counted from 0
        heading = HEADING.fullmatch(lines[first])
        prose_end = first
        while heading and prose_end < end and lines[prose_end].startswith("#"):
            prose_end += 1
        pieces = _pieces(lines, [node for node in statements if prose_end < node.lineno <= end])
        number, title, name = (
            heading.groups() if heading else (0, "Start: what the file is, and what it needs", "start")
        )
        prose = " ".join(line.removeprefix("#").strip() for line in lines[first + 1 : prose_end])
        sections.append(Section(number=int(number), name=name.lower(), title=title, prose=prose, pieces=tuple(pieces)))
    return sections


def _pieces(lines: list[str], statements: list[ast.stmt]) -> list[Piece]:
    """Each function and class separately; other adjacent statements together."""
    spans: list[tuple[str, int, int]] = []  # name, first and last line
    for node in statements:
        is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef)
        first = min(part.lineno for part in [node, *getattr(node, "decorator_list", [])])
        name, end = node.name if is_definition else "", node.end_lineno or first
        if spans and not name and not spans[-1][0]:
            spans[-1] = ("", spans[-1][1], end)
        else:
            spans.append((name, first, end))
    return [Piece(name=name, first_line=first, code="\n".join(lines[first - 1 : end])) for name, first, end in spans]


def code_width() -> int:
    """The columns that the longest line of the file needs."""
    return max(map(len, FILE.read_text(encoding="utf-8").splitlines())) + NUMBER_WIDTH


def print_section(console: Console, section: Section, values: Callable[[str], Shown]) -> None:
    """Print a section; `values` returns what to show at a piece, by its name.

    Side by side where the console is wide enough. Code goes to a file or pipe as plain lines that are never broken.
    """
    title = f"{section.number}  {section.title}"
    rule = ("-" if console.options.ascii_only else "─") * max(0, console.width - len(title) - 2)
    console.print(Text.assemble("\n", (title, "bold"), "  ", (rule, "dim"), "\n"), soft_wrap=True)
    if section.prose:
        console.print(Padding(Text(section.prose), (0, 0, 1, 1)), width=min(console.width, PROSE_WIDTH))
    for piece in section.pieces:
        shown = Group(*values(piece.name))
        if console.is_terminal and console.width >= code_width() + VALUES_WIDTH + 2:
            table = Table.grid(padding=(0, 2, 0, 0))
            table.add_column(width=code_width())
            table.add_column(width=VALUES_WIDTH, overflow="fold")
            table.add_row(_highlighted(piece), shown)
            console.print(table)
        else:
            _print_stacked(console, piece, shown)
        console.print()


def _print_stacked(console: Console, piece: Piece, shown: Group) -> None:
    """Print the code, and below it the values with a line on their left."""
    if console.is_terminal:
        console.print(_highlighted(piece))
    else:
        for number, line in enumerate(piece.code.splitlines(), start=piece.first_line):
            console.print(Text(f"{number:>4} {line}".rstrip()), soft_wrap=True)
    if not shown.renderables:
        return
    console.print()
    edge = (f"{'|' if console.options.ascii_only else '│'} ".rjust(NUMBER_WIDTH + 2), "dim")
    for line in console.render_lines(shown, console.options.update(width=VALUES_WIDTH), pad=False):
        console.print(Text.assemble(edge, *((part.text, part.style or "") for part in line)), soft_wrap=True)


def _highlighted(piece: Piece) -> Syntax:
    return Syntax(
        piece.code,
        "python",
        theme="ansi_light",  # the terminal's own colours, readable on any background
        line_numbers=True,
        start_line=piece.first_line,
        background_color="default",
        word_wrap=True,
    )
