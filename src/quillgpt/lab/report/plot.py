"""A figure as data (`Plot`), its colours, and its drawing by matplotlib: SVG for the page, PNG for a paper.

An SVG takes its colours from CSS variables of the page, so that one drawing is right in the light and in the dark
scheme, and keeps text as text. The same plot gives the same bytes, whatever matplotlib settings the user has.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quillgpt import files
from quillgpt.ascii_plot import tick
from quillgpt.errors import ConfigError
from quillgpt.lab.report.text import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The hues of Okabe and Ito's palette, darkened or lightened until each has a contrast of at least 3 to its background.
# Hue alone is not enough: each run also has a marker, and from the eighth on, where the colours repeat, another dash.
LIGHT = {
    "ground": "#ffffff",
    "raised": "#f6f7f8",
    "text": "#1b1f24",
    "muted": "#5b636d",
    "line": "#d8dce1",
    "accent": "#00588a",
}
DARK = {
    "ground": "#14171b",
    "raised": "#1d2127",
    "text": "#e6e9ed",
    "muted": "#a0a8b2",
    "line": "#363c45",
    "accent": "#7cc0ee",
}
# blue, vermilion, bluish green, reddish purple, orange, black or white, sky blue
RUNS_ON_LIGHT = ("#0072b2", "#d55e00", "#008a66", "#b85a92", "#a87a00", "#2b2f36", "#3d95cc")
RUNS_ON_DARK = ("#4d9fe0", "#f0803c", "#2ec79b", "#e39bc6", "#f0bb3a", "#f2f4f6", "#a5dcff")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Dash = Literal["solid", "dashed", "dashdot", "dotted"]
DASHES: tuple[Dash, ...] = ("solid", "dashed", "dashdot", "dotted")
PAPER = LIGHT | {f"run-{number}": colour for number, colour in enumerate(RUNS_ON_LIGHT)}
CODES = {name: f"#0a0b{number:02x}" for number, name in enumerate(PAPER, start=1)}  # placeholders of CSS variables

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
Box = tuple[float, float, float, float]


def colour_number(run: int) -> int:
    """The index of the colour and the marker of a run."""
    return run % len(RUNS_ON_LIGHT)


def dash(run: int) -> Dash:
    """The line style of a run."""
    return DASHES[run // len(RUNS_ON_LIGHT) % len(DASHES)]


class Kind(Enum):
    """How a line is drawn."""

    FAINT = "faint"
    STRONG = "strong"
    POINTS = "points"  # joined by a thin line, with error bars where there are errors
    LAYER = "layer"  # one of many, thin


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of one run; `x`, `y` and, if not empty, `error` are (n,) float64.

    `run` is the number of the run. `covers` is how many lines of the figure have the same points: this one is dashed so
    that they can be seen below it.
    """

    run: int
    label: str
    kind: Kind
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray = field(default_factory=lambda: np.zeros(0))
    covers: int = 0


@dataclass(frozen=True, kw_only=True)
class Area:
    """The area between two curves, (n,) float64 each; `middle`, if not empty, is a curve inside; `run` -1: no run."""

    run: int
    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    middle: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One figure. `limits` are those of the y axis, `caption` has its numbers in words, `key` is its name in files.

    `levels` are horizontal lines by their names, `marks` places on the x axis, (n,), by the number of the run.
    """

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    caption: str
    limits: tuple[float, float]
    key: str = ""
    levels: dict[str, float] = field(default_factory=dict)
    areas: list[Area] = field(default_factory=list)
    marks: dict[int, np.ndarray] = field(default_factory=dict)
    is_logarithmic: bool = False
    is_main: bool = False

    @property
    def points(self) -> int:
        """The number of points drawn."""
        return sum(len(part.x) for part in [*self.lines, *self.areas]) + sum(map(len, self.marks.values()))

    @property
    def alternative(self) -> str:
        """A description for readers who cannot see the figure; the caption has the numbers."""
        runs = list(dict.fromkeys(line.label for line in self.lines if line.kind is not Kind.LAYER))
        lines = f" of {listed(runs)}" if 0 < len(runs) <= 4 else f", {len(self.lines)} lines"
        return f"{self.title}: line chart of {self.y_label} against {self.x_label}{lines}"


def require_matplotlib() -> None:
    """Raise a `ConfigError` if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        extra = "pip install 'quillgpt[lab]'"
        raise ConfigError(f"the figures need matplotlib: {extra}; --text does without") from None


def write_figures(plots: Sequence[Plot], directory: Path) -> list[Path]:
    """Write each plot as KEY.png, replacing an older one atomically; return the paths."""
    paths = [directory / f"{plot.key}.png" for plot in plots]
    for plot, path in zip(plots, paths, strict=True):
        with files.atomic_file(path) as file:
            file.write(png(plot))
    return paths


def svg(plot: Plot, *, width: int, height: int) -> str:
    """The plot as an <svg> element of that many pixels; its colours are `var(--NAME)`."""
    with _settings(f"{plot.key}{width}"):
        figure = _figure(plot, (width, height), CODES, font=12)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _for_page(file.getvalue(), width, height)


def png(plot: Plot) -> bytes:
    """The plot as a PNG of 6.4 inches at 220 dpi, with its title and a legend."""
    with _settings(plot.key):
        figure = _figure(plot, PAPER_SIZE, PAPER, font=9)
        axes = figure.axes[0]
        axes.set_title(plot.title, loc="left", fontsize=10, fontweight="bold", color=PAPER["text"])
        _legend(axes, plot)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=PAPER_DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _for_page(drawn: str, width: int, height: int) -> str:
    """matplotlib's file as an element: colours as variables, coordinates to 0.01 pixels, no id without a reference."""
    text = drawn[drawn.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"-?\d+\.\d{3,}", _short, tag[0]), text)
    for name, code in CODES.items():
        text = text.replace(code, f"var(--{name})")
    referred = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in referred else "", text)
    text = re.sub(r"\n\s*(?=<)", "\n", text)
    inside = text[text.index(">") + 1 :]
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">{inside}'


def _short(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


@contextmanager
def _settings(salt: str) -> Iterator[None]:
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
    for run, x in plot.marks.items():
        colour, height = ink[f"run-{colour_number(run)}"], np.full(len(x), 0.025)
        axes.plot(x, height, "x", color=colour, markersize=font / 2, transform=axes.get_xaxis_transform())
    return figure


def _frame(axes: "Axes", plot: Plot, ink: dict[str, str], font: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if plot.is_logarithmic:
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(round(value, 12))))
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
    far = max((float(x.max()) for x in [*(line.x for line in plot.lines), *plot.marks.values()]), default=1.0)
    return (-0.01 * far, 1.03 * far) if far > 0 else (-0.5, 0.5)


def _levels(axes: "Axes", plot: Plot, ink: dict[str, str], font: float, pixels: tuple[int, int]) -> None:
    """Dashed horizontal lines, each with its name above it."""
    taken: list[Box] = []
    style: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 0.9 * font, "color": ink["muted"]}
    for name, value in sorted(plot.levels.items(), key=lambda level: level[1]):
        axes.axhline(value, color=ink["muted"], linewidth=1, linestyle=(0, (4, 3)))
        taken.append(free_place(plot, name, font=font, pixels=pixels, taken=taken))
        axes.annotate(name, (taken[-1][1], value), xytext=(0, 2), textcoords="offset points", **style)


def free_place(plot: Plot, name: str, *, font: float, pixels: tuple[int, int], taken: Sequence[Box]) -> Box:
    """The place for the name of a level with the fewest overlaps: (left, right, bottom, top) in data coordinates."""
    (left, right), (low, high) = _x_limits(plot), plot.limits
    value = plot.levels[name]
    width = 0.56 * font * len(name) / (0.85 * pixels[0]) * (right - left)
    height = 1.5 * font / (0.8 * pixels[1]) * (high - low)

    def overlaps(box: Box) -> int:
        names = sum(box[0] < o[1] and o[0] < box[1] and box[2] < o[3] and o[2] < box[3] for o in taken)
        places, curves = np.linspace(box[0], box[1], 33), 0
        for line in plot.lines:
            inside = places[(places >= line.x.min()) & (places <= line.x.max())]
            y = np.interp(inside, line.x, line.y)
            curves += int(((y >= box[2]) & (y <= box[3])).sum())
        return 100 * names + curves

    ends = [max(left + share * (right - left), left + width) for share in (0.995, 0.8, 0.6, 0.45, 0.3)]
    return min(((end - width, end, value, value + height) for end in ends), key=overlaps)


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
        every = max(1, len(line.x) // 40)
        if len(line.error) and line.error.any():
            x, y, error = line.x[::every], line.y[::every], line.error[::every]
            axes.errorbar(x, y, yerr=error, fmt="none", ecolor=colour, elinewidth=1.2, capsize=0)
        style |= {"marker": MARKERS[colour_number(line.run)], "markersize": 6, "markevery": every}
        style |= {"markeredgecolor": ink["ground"], "markeredgewidth": 0.8}
        axes.plot(line.x, line.y, linewidth=1, alpha=1, **style)


def _legend(axes: "Axes", plot: Plot) -> None:
    """The names of the runs, if there are several; characters that the font lacks become question marks."""
    from matplotlib import font_manager
    from matplotlib.lines import Line2D

    runs = {line.run: line.label for line in plot.lines if line.kind is not Kind.LAYER}
    if len(runs) < 2:
        return
    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    handles = []
    for run, label in runs.items():
        name = "".join(x if ord(x) in known else "?" for x in (label if len(label) <= 32 else f"{label[:31]}…"))
        colour = PAPER[f"run-{colour_number(run)}"]
        handles.append(Line2D([], [], color=colour, linestyle=dash(run), linewidth=2, label=name))
    axes.legend(handles=handles, fontsize=8, frameon=False, labelcolor=PAPER["text"], ncols=1 if len(runs) < 5 else 2)
