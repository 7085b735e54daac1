"""Tensors as text: name, shape and values in a line, tables, bars, curves and heat maps, in colour where possible."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from torch import Tensor

Shown = list[RenderableType]  # what is shown next to a piece of code, from top to bottom
COLD, HOT = (128, 134, 146), (255, 150, 40)  # a grey and an orange, distinct on black and on white
SHADES, ASCII_SHADES = "░▒▓█", ".-+#"
HEIGHTS, ASCII_HEIGHTS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
VALUES_SHOWN = 3


def note(text: str) -> Text:
    """A sentence about what is shown."""
    return Text(text, style="italic")


def tensor_line(name: str, tensor: Tensor) -> Text:
    """Name, shape and the first values."""
    shape = "(" + ", ".join(map(str, tensor.shape)) + ")"
    values = tensor.detach().flatten()[:VALUES_SHOWN].tolist()
    more = " ..." if tensor.numel() > VALUES_SHOWN else ""
    numbers = " ".join(f"{value:.2f}" if tensor.is_floating_point() else str(value) for value in values)
    return Text.assemble((f"{name:<8}", "bold"), " ", (f"{shape:<13}", "cyan"), " ", numbers, more)


def printable(text: str) -> str:
    """The text with escapes for control characters."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


def visible(text: str) -> str:
    """A token with _ for a space and escapes for control characters."""
    return printable(text).replace(" ", "_")


def columns(*rows: Sequence[object], right: Sequence[int] = ()) -> Table:
    """Rows of short texts as a table; the columns with an index in `right` are right-aligned."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for index in range(len(rows[0])):
        table.add_column(justify="right" if index in right else "left", no_wrap=True, overflow="crop")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Bar) else Text(str(cell)) for cell in row))
    return table


@dataclass(frozen=True)
class Bar:
    """A horizontal bar for a fraction between 0 and 1."""

    fraction: float
    width: int = 20

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        block, thin = ("#", "|") if options.ascii_only else ("█", "▏")
        blocks = round(self.fraction * self.width)
        yield Text(block * blocks or (thin if self.fraction > 0 else ""), style=_colour(self.fraction))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.width, self.width)


@dataclass(frozen=True)
class Curve:
    """Values from 0 to the largest as the heights of characters in one line, subsampled to the width."""

    values: Sequence[float]
    width: int = 44

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heights = ASCII_HEIGHTS if options.ascii_only else HEIGHTS
        count = min(self.width, len(self.values))
        kept = [self.values[index * (len(self.values) - 1) // max(1, count - 1)] for index in range(count)]
        top = max(kept)
        yield Text("".join(_level(heights, value / top) for value in kept), style="cyan")


@dataclass(frozen=True)
class HeatMap:
    """Matrices (rows, columns) of fractions side by side, a cell per value, with labels for rows; NaN is left blank."""

    titles: Sequence[str]
    matrices: Sequence[Tensor]
    labels: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        has_colour = console.color_system is not None and not console.no_color
        shades = ASCII_SHADES if options.ascii_only else SHADES
        margin = max(map(cell_len, self.labels)) + 1
        width = 2 * self.matrices[0].shape[1] + 3
        yield Text(" " * margin + "".join(f"{title:<{width}}" for title in self.titles), style="dim")
        for row, label in enumerate(self.labels):
            line = Text(label.rjust(margin - 1) + " ")
            for matrix in self.matrices:
                for value in matrix[row].tolist():
                    is_blank = value != value  # NaN
                    shade = "  " if is_blank or has_colour else 2 * _level(shades, value)
                    line.append(shade, f"on {_colour(value)}" if has_colour and not is_blank else "")
                line.append("   ")
            yield line


def _level(characters: str, fraction: float) -> str:
    """The character for a fraction between 0 and 1."""
    return characters[min(len(characters) - 1, int(fraction * len(characters)))]


def _colour(fraction: float) -> str:
    rgb = (round(cold + (hot - cold) * min(1.0, fraction)) for cold, hot in zip(COLD, HOT, strict=True))
    return f"rgb({','.join(map(str, rgb))})"
