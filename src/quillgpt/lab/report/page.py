"""The contents of a report (`Report`), and the report as one HTML file with figures and style inside.

The page has no script and loads nothing. A policy in its head forbids scripts and requests, so that the name of a run
or a sample stays text even if escaping failed.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from quillgpt import files
from quillgpt.lab.report import tables, text
from quillgpt.lab.report.figures import band_plots, main_plots, score_plots, statistics_plots
from quillgpt.lab.report.plot import (
    DARK,
    DASHES,
    LIGHT,
    MARKERS,
    RUNS_ON_DARK,
    RUNS_ON_LIGHT,
    Plot,
    colour_number,
    dash,
    svg,
)
from quillgpt.lab.report.runs import ReportedRun, StepSamples
from quillgpt.lab.run_record import BOOKKEEPING

if TYPE_CHECKING:
    from jinja2 import Environment

MARK = '<meta name="generator" content="quillgpt report">'
FIGURE_SIZES = {"small": (450, 285), "wide": (1040, 400), "narrow": (400, 330)}
DASH_ARRAYS = dict(zip(DASHES, ("none", "7 4", "7 3 2 3", "2 3"), strict=True))
MARKS = dict(  # drawn around 0, 0
    zip(
        MARKERS,
        (
            "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
            "M-3.6 -3.6h7.2v7.2h-7.2z",
            "M0 -4.4L4.4 3.6H-4.4z",
            "M0 -4.6L4.6 0L0 4.6L-4.6 0z",
            "M0 4.4L4.4 -3.6H-4.4z",
            "M-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
            "M-4.4 -2.4l2 -2l2.4 2.4l2.4 -2.4l2 2l-2.4 2.4l2.4 2.4l-2 2l-2.4 -2.4l-2.4 2.4l-2 -2l2.4 -2.4z",
        ),
        strict=True,
    )
)


class Report:
    """What a report says of these runs, for the page, the terminal and PNG files."""

    def __init__(self, runs: Sequence[ReportedRun]) -> None:
        self.runs = runs
        self.differences = tables.differences(runs)
        if len(runs) == 1:
            self.title, self.lead = runs[0].label, f"{text.trained(runs[0])} {text.result(runs[0])}"
            self.cards = tables.cards(runs[0])
        else:
            differing = [row[0] for row in self.differences.rows if row[0] not in BOOKKEEPING]
            self.title = f"{text.small_count(len(runs), 'runs').capitalize()} side by side"
            self.lead, self.cards = text.summary(runs, differing), []
        plots, self.bands = band_plots(runs)
        self.figures, self.score_figures, self.statistics = with_own_keys(
            [*main_plots(runs), *plots], score_plots(runs), statistics_plots(runs)
        )
        self.comparison = text.comparison(runs)
        self.headline, self.compressors = tables.headline(runs), tables.compressors_table(runs)
        self.scores, self.settings = tables.scores_table(runs), tables.settings_table(runs)
        self.environment = tables.environments(runs)
        self.smoothing = _smoothing(runs)
        self.sources = [f"{run.record.path}: {len(run.record.lines):,} lines of metrics" for run in runs]

    @property
    def plots(self) -> list[Plot]:
        """All figures."""
        return [*self.figures, *self.score_figures, *self.statistics]


def with_own_keys(*groups: Sequence[Plot]) -> list[list[Plot]]:
    """The plots with unique keys, made from their titles if they have none."""
    taken: set[str] = set()

    def renamed(plot: Plot) -> Plot:
        base = re.sub(r"[^a-z0-9]+", "-", (plot.key or plot.title).lower()).strip("-")[:60] or "figure"
        names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
        key = next(name for name in names if name not in taken)
        taken.add(key)
        return replace(plot, key=key)

    return [[renamed(plot) for plot in plots] for plots in groups]


def _smoothing(runs: Sequence[ReportedRun]) -> str:
    windows = sorted({run.window for run in runs})
    if windows == [1]:
        return "The curves join the logged lines."
    spans = text.listed([f"{window:,}" for window in windows if window > 1])
    return (
        f"Strong lines: weighted means of {spans} neighbouring logged lines. Faint: the logged lines, or if there are "
        "many, the range from the lowest to the highest of some hundred equal shares. Points: validation loss, with "
        "bars of one standard error if they are longer than the marker is high."
    )


def chosen_samples(samples: list[StepSamples]) -> list[StepSamples]:
    """The first, the middle and the last."""
    places = sorted({0, (len(samples) - 1) // 2, len(samples) - 1}) if samples else []
    return [samples[place] for place in places]


def write_page(report: Report, path: Path) -> int:
    """Write the page, replacing an older one atomically; return its size in bytes."""
    page = html(report)
    files.write_text(path, page)
    return len(page.encode())


def html(report: Report) -> str:
    """The page; the same report gives the same text."""
    from importlib.metadata import version

    from markupsafe import Markup

    template = _environment().from_string(_part("page.html.j2"))
    page = template.render(report=report, style=_style(), mark=Markup(MARK), version=version("quillgpt"))
    return f"{page}\n"


def _environment() -> "Environment":
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {
        "drawn": lambda plot, size: Markup(svg(plot, width=FIGURE_SIZES[size][0], height=FIGURE_SIZES[size][1])),
        "style_of": style_of,
        "prose": lambda words: Markup(prose(str(escape(words)))),
        "chosen": chosen_samples,
        "trained": text.trained,
        "result": text.result,
        "overview": tables.overview,
        "validations_table": tables.validations_table,
    }
    return environment


def prose(escaped: str) -> str:
    """Escaped text with commands as code, and no line break between numbers and their errors and units."""
    words = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped).replace(" ± ", "\u00a0±\u00a0")
    return re.sub(r"(\d) (h|min|s|GB|MB|kB|seconds|tokens/s|million|billion)\b", "\\1\u00a0\\2", words)


def style_of(run: ReportedRun) -> dict[str, str]:
    """Colour, dash and marker of a run for the legend."""
    return {
        "colour": f"var(--run-{colour_number(run.number)})",
        "dash": DASH_ARRAYS[dash(run.number)],
        "mark": MARKS[MARKERS[colour_number(run.number)]],
    }


def _style() -> str:
    from markupsafe import Markup

    return Markup(
        _part("page.css")
        .replace("/* light */", _variables(LIGHT, RUNS_ON_LIGHT))
        .replace("/* dark */", _variables(DARK, RUNS_ON_DARK))
    )


def _variables(scheme: dict[str, str], runs: tuple[str, ...]) -> str:
    colours = scheme | {f"run-{number}": colour for number, colour in enumerate(runs)}
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _part(name: str) -> str:
    return resources.files("quillgpt.lab.report").joinpath(name).read_text(encoding="utf-8")
