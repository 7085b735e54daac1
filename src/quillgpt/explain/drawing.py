"""Tensors as text: a line of shape and values, bars, a curve in one line, a heat map; in colour where there is some."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from torch import Tensor

COLD, HOT = (128, 134, 146), (255, 150, 40)  # a grey and an orange that can be told apart on black and on white
SHADES, PLAIN_SHADES = "░▒▓█", ".-+#"
STEPS, PLAIN_STEPS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
Shown = list[RenderableType]  # what is shown beside a piece of code, from top to bottom
VALUES_SHOWN = 3


def said(text: str) -> Text:
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
    """Text with escapes for what a terminal obeys."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


def visible(text: str) -> str:
    """A token as it can be seen: with _ for a space."""
    return printable(text).replace(" ", "_")


def columns(*rows: Sequence[object], right: Sequence[int] = ()) -> Table:
    """Rows of short texts under each other; `right` are the columns that are aligned right."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for index in range(len(rows[0])):
        table.add_column(justify="right" if index in right else "left", no_wrap=True, overflow="crop")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Bar | Text) else Text(str(cell)) for cell in row))
    return table


@dataclass(frozen=True)
class Bar:
    """A horizontal bar for a share between 0 and 1."""

    share: float
    width: int = 20

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Full blocks, at least a thin one where there is something."""
        block, thin = ("#", "|") if options.ascii_only else ("█", "▏")
        blocks = round(self.share * self.width)
        yield Text(block * blocks or (thin if self.share > 0 else ""), style=_colour(self.share))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """As wide as the bar of 1."""
        return Measurement(self.width, self.width)


@dataclass(frozen=True)
class Curve:
    """Values in one line, each by the height of its character; long ones are thinned out to the width."""

    values: Sequence[float]
    width: int = 44

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """From 0 to the largest."""
        steps = PLAIN_STEPS if options.ascii_only else STEPS
        count = min(self.width, len(self.values))
        kept = [self.values[index * (len(self.values) - 1) // max(1, count - 1)] for index in range(count)]
        top = max(kept)
        yield Text("".join(steps[min(len(steps) - 1, int(value / top * len(steps)))] for value in kept), style="cyan")


@dataclass(frozen=True)
class Heat:
    """Matrices of shares between 0 and 1 side by side, one cell a value; rows have labels, NaN is not drawn."""

    titles: Sequence[str]
    matrices: Sequence[Tensor]
    labels: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Coloured cells, or shades of grey where there is no colour."""
        has_colour = console.color_system is not None and not console.no_color
        margin = max(map(cell_len, self.labels)) + 1
        width = 2 * self.matrices[0].shape[1] + 3
        yield Text(" " * margin + "".join(f"{title:<{width}}" for title in self.titles), style="dim")
        for row, label in enumerate(self.labels):
            line = Text(label.rjust(margin - 1) + " ")
            for matrix in self.matrices:
                for value in matrix[row].tolist():
                    line.append_text(_cell(value, has_colour=has_colour, is_plain=options.ascii_only))
                line.append("   ")
            yield line


def _cell(share: float, *, has_colour: bool, is_plain: bool) -> Text:
    if share != share:  # NaN: there is nothing to look at
        return Text("  ")
    if has_colour:
        red, green, blue = _mixed(share)
        return Text("  ", style=f"on rgb({red},{green},{blue})")
    shades = PLAIN_SHADES if is_plain else SHADES
    return Text(shades[min(len(shades) - 1, int(share * len(shades)))] * 2)


def _colour(share: float) -> str:
    red, green, blue = _mixed(share)
    return f"rgb({red},{green},{blue})"


def _mixed(share: float) -> tuple[int, int, int]:
    red, green, blue = (round(cold + (hot - cold) * min(1.0, share)) for cold, hot in zip(COLD, HOT, strict=True))
    return red, green, blue
