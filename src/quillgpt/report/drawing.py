"""A `Plot` drawn by matplotlib: as SVG whose colours follow the page it stands on, or as PNG on white paper.

For the page every colour is first a code of its own and then a CSS variable, so that one drawing is right in the light
and in the dark scheme; text stays text, in the page's font. Nothing of the user's own matplotlib settings is used, and
the same plot gives the same bytes.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from quillgpt.errors import ConfigError
from quillgpt.report.palette import LIGHT, MARKERS, RUNS_ON_LIGHT, colour_number, dash
from quillgpt.report.plot import Kind, Level, Line, Plot
from quillgpt.report.wording import compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUND = [1, 2, 2.5, 5, 10]  # steps between ticks
POINTS_PER_INCH = 72  # so that a unit of the SVG is a pixel at its natural size
ROUND = [1, 2, 2.5, 5, 10]  # steps between ticks
PAPER_SIZE, PAPER_DPI = (460, 290), 220
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "path.simplify": False,
}
NAMES = [*LIGHT, *(f"run-{number}" for number in range(len(RUNS_ON_LIGHT)))]
Box = tuple[float, float, float, float]
CODES = {name: f"#0a0b{number:02x}" for number, name in enumerate(NAMES, start=1)}
PAPER = LIGHT | {f"run-{number}": colour for number, colour in enumerate(RUNS_ON_LIGHT)}


def require_matplotlib() -> None:
    """A `ConfigError` where the package is missing, before anything is read."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        extra = "pip install 'quillgpt[report]'"
        raise ConfigError(f"the figures need matplotlib: {extra}; --text does without") from None


def svg(plot: Plot, *, width: int, height: int) -> str:
    """The plot as an <svg> element of so many pixels that fits its container; `var(--NAME)` are its colours."""
    with _settings(plot.key + f"{width}"):
        figure = _figure(plot, (width, height), CODES, font=12)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return for_page(file.getvalue(), width, height)


def png(plot: Plot) -> bytes:
    """The plot as a PNG of 6.4 inches at 220 dpi, with its title and a legend in it."""
    with _settings(plot.key):
        figure = _figure(plot, PAPER_SIZE, PAPER, font=9)
        axes = figure.axes[0]
        axes.set_title(plot.title, loc="left", fontsize=10, fontweight="bold", color=PAPER["text"])
        _legend(axes, plot)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=PAPER_DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def for_page(drawn: str, width: int, height: int) -> str:
    """matplotlib's file as an element: colours as variables, short numbers, no ids that nothing refers to."""
    text = drawn[drawn.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"-?\d+\.\d{3,}", _short, tag[0]), text)
    for name, code in CODES.items():
        text = text.replace(code, f"var(--{name})")
    referred = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in referred else "", text)
    text = re.sub(r"\n\s*(?=<)", "\n", text)
    inside = text[text.index(">") + 1 :]
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">{inside}'


def _short(number: re.Match[str]) -> str:
    """A coordinate to a hundredth of a pixel."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


@contextmanager
def _settings(salt: str) -> Iterator[None]:
    """matplotlib's own settings and ours, whatever the user has in a matplotlibrc."""
    import matplotlib
    import matplotlib.style

    with matplotlib.style.context(["default", SETTINGS | {"svg.hashsalt": salt}]):
        yield


def _figure(plot: Plot, pixels: tuple[int, int], ink: dict[str, str], font: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(pixels[0] / POINTS_PER_INCH, pixels[1] / POINTS_PER_INCH), dpi=POINTS_PER_INCH)
    figure.set_layout_engine("constrained", w_pad=0.04, h_pad=0.04)
    axes = figure.add_subplot()
    _frame(axes, plot, ink, font)
    for area in plot.areas:
        colour = ink["muted"] if area.run < 0 else ink[f"run-{colour_number(area.run)}"]
        axes.fill_between(area.x, area.low, area.high, color=colour, alpha=0.18, linewidth=0)
        if len(area.middle):
            axes.plot(area.x, area.middle, color=colour, linewidth=1, linestyle="dotted")
    _levels(axes, plot, ink, font, pixels)
    for line in sorted(plot.lines, key=lambda line: list(Kind).index(line.kind)):
        _line(axes, line, ink)
    for marks in plot.marks:
        transform = axes.get_xaxis_transform()
        colour = ink[f"run-{colour_number(marks.run)}"]
        height = np.full(len(marks.x), 0.025)
        axes.plot(marks.x, height, "x", color=colour, markersize=font / 2, transform=transform, label=marks.label)
    return figure


def _frame(axes: "Axes", plot: Plot, ink: dict[str, str], font: float) -> None:
    """Axes of two thin lines, ticks outside, a faint grid across."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if plot.is_logarithmic:
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: compact(round(value, 12))))
    axes.set_ylim(*plot.limits)
    axes.set_xlim(*_x_limits(plot))
    axes.set_xlabel(plot.x_label, fontsize=font, color=ink["muted"])
    axes.set_ylabel(plot.y_label, fontsize=font, color=ink["muted"])
    axes.tick_params(labelsize=font, labelcolor=ink["muted"], color=ink["line"], which="both")
    axes.grid(axis="y", color=ink["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(ink["line"])


def _x_limits(plot: Plot) -> tuple[float, float]:
    """From 0 to a little beyond the last point."""
    far = max((float(part.x.max()) for part in [*plot.lines, *plot.marks] if len(part.x)), default=1.0)
    return (-0.01 * far, 1.03 * far) if far > 0 else (-0.5, 0.5)


def _levels(axes: "Axes", plot: Plot, ink: dict[str, str], font: float, pixels: tuple[int, int]) -> None:
    """Dashed lines across, each named above it, where neither a curve nor another name is in the way."""
    taken: list[Box] = []
    for level in sorted(plot.levels, key=lambda level: level.value):
        axes.axhline(level.value, color=ink["muted"], linewidth=1, linestyle=(0, (4, 3)))
        box = free_place(plot, level, font=font, pixels=pixels, taken=taken)
        taken.append(box)
        axes.annotate(
            level.label,
            (box[1], level.value),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=0.9 * font,
            color=ink["muted"],
        )


def free_place(plot: Plot, level: Level, *, font: float, pixels: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Where a level's name may stand (left, right, bottom, top, in data): the freest of a few places along the line."""
    (left, right), (low, high) = _x_limits(plot), plot.limits
    width = 0.56 * font * len(level.label) / (0.85 * pixels[0]) * (right - left)
    height = 1.5 * font / (0.8 * pixels[1]) * (high - low)
    boxes = []
    for share in (0.995, 0.8, 0.6, 0.45, 0.3):
        end = max(left + share * (right - left), left + width)
        boxes.append((end - width, end, level.value, level.value + height))
    return min(boxes, key=lambda box: 100 * sum(_overlap(box, other) for other in taken) + _crossings(plot, box))


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def _crossings(plot: Plot, box: Box) -> int:
    """How many of some places below a name have a curve running through it."""
    places = np.linspace(box[0], box[1], 33)
    found = 0
    for line in plot.lines:
        inside = places[(places >= line.x.min()) & (places <= line.x.max())]
        y = np.interp(inside, line.x, line.y)
        found += int(((y >= box[2]) & (y <= box[3])).sum())
    return found


def _line(axes: "Axes", line: Line, ink: dict[str, str]) -> None:
    colour, is_single = ink[f"run-{colour_number(line.run)}"], len(line.x) == 1
    style: dict[str, Any] = {"color": colour, "linestyle": dash(line.run), "solid_capstyle": "round"}
    if line.kind is Kind.FAINT:
        axes.plot(line.x, line.y, linewidth=0.8, alpha=0.38, **style | {"linestyle": "solid"})
    elif line.kind is Kind.LAYER:
        axes.plot(line.x, line.y, linewidth=1, alpha=0.7, marker="." if is_single else None, **style)
    elif line.kind is Kind.STRONG:
        if line.covers:
            style |= {"linestyle": (0, (5, 5 * line.covers)), "dash_capstyle": "butt"}
        axes.plot(line.x, line.y, linewidth=2, marker="o" if is_single else None, **style)
    else:
        marker = MARKERS[colour_number(line.run)]
        every = max(1, len(line.x) // 40)
        edge = {"markeredgecolor": ink["ground"], "markeredgewidth": 0.8}
        if len(line.error) and line.error.any():
            bars = slice(None, None, every)
            x, y, error = line.x[bars], line.y[bars], line.error[bars]
            axes.errorbar(x, y, yerr=error, fmt="none", ecolor=colour, elinewidth=1.2, capsize=0)
        axes.plot(line.x, line.y, marker=marker, markersize=6, markevery=every, linewidth=1, alpha=1, **style, **edge)


def _legend(axes: "Axes", plot: Plot) -> None:
    """Which run has which colour, where there are several; names in what the font can show."""
    from matplotlib.lines import Line2D

    runs = {line.run: line.label for line in plot.lines if line.kind is not Kind.LAYER}
    if len(runs) < 2:
        return
    handles = [
        Line2D(
            [],
            [],
            color=PAPER[f"run-{colour_number(run)}"],
            linestyle=dash(run),
            linewidth=2,
            label=_in_font(label if len(label) <= 32 else f"{label[:31]}…"),
        )
        for run, label in runs.items()
    ]
    axes.legend(handles=handles, fontsize=8, frameon=False, labelcolor=PAPER["text"], ncols=1 if len(runs) < 5 else 2)


def _in_font(text: str) -> str:
    """The text with a question mark for what the font has no picture of."""
    from matplotlib import font_manager

    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return "".join(x if ord(x) in known else "?" for x in text)
