"""gpt2.py cut into its sections and these into pieces, by its own headings and functions, for `quill explain`."""

import ast
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

FILE = Path(__file__).with_name("gpt2.py")
HEADING = re.compile(r"# (\d+)\. ((\w+): .+)")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A function or class with its name, or the code between two of them, whose name is empty."""

    name: str
    first_line: int
    code: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, the comment below it as one paragraph, and the code up to the next heading."""

    number: int
    name: str
    title: str
    first_line: int
    prose: str
    pieces: tuple[Piece, ...]


def read_sections(source: str | None = None) -> list[Section]:
    """The sections of a source in order, of gpt2.py's if none is given; what is before the first heading is one too."""
    text = FILE.read_text(encoding="utf-8") if source is None else source
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if HEADING.fullmatch(line)]
    spans = list(pairwise([0, *starts, len(lines)]))
    statements = ast.parse(text).body
    return [_section(lines, first, end, statements) for first, end in spans]


def _section(lines: list[str], first: int, end: int, statements: list[ast.stmt]) -> Section:
    """The section of the lines first up to end, both counted from 0."""
    heading = HEADING.fullmatch(lines[first])
    prose_end = first
    while heading and prose_end < end and lines[prose_end].startswith("#"):
        prose_end += 1
    inside = [statement for statement in statements if prose_end < _last_line(statement) <= end]
    return Section(
        number=int(heading[1]) if heading else 0,
        name=heading[3].lower() if heading else "start",
        title=heading[2] if heading else "Start: what the file is, and what it needs",
        first_line=first + 1,
        prose=" ".join(line.removeprefix("#").strip() for line in lines[first + 1 : prose_end]),
        pieces=tuple(_pieces(lines, inside)),
    )


def _pieces(lines: list[str], statements: list[ast.stmt]) -> list[Piece]:
    """Each function and class by itself; the docstring, and other statements as they follow each other, as one."""
    groups: list[tuple[str, int, int]] = []
    for statement in statements:
        is_definition = isinstance(statement, ast.FunctionDef | ast.ClassDef)
        name = statement.name if is_definition else ""
        decorators = statement.decorator_list if is_definition else []
        first = min([statement.lineno, *(decorator.lineno for decorator in decorators)])
        is_docstring = isinstance(statement, ast.Expr)
        if groups and not name and not groups[-1][0] and not is_docstring and groups[-1][1] != 1:
            groups[-1] = ("", groups[-1][1], _last_line(statement))
        else:
            groups.append((name, first, _last_line(statement)))
    return [Piece(name=name, first_line=first, code="\n".join(lines[first - 1 : end])) for name, first, end in groups]


def _last_line(statement: ast.stmt) -> int:
    return statement.end_lineno or statement.lineno
