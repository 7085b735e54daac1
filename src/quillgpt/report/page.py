"""The report as one HTML file: figures, style and text inside, no script, nothing from the network.

A policy in its head forbids scripts and requests, so that a run's name or a sample stays text even where escaping would
have failed.
"""

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from quillgpt import files
from quillgpt.report.contents import Contents, RunPart, chosen_samples
from quillgpt.report.palette import DARK, DASHES, LIGHT, MARKERS, RUNS_ON_DARK, RUNS_ON_LIGHT, colour_number, dash

if TYPE_CHECKING:
    from jinja2 import Environment

MARK = '<meta name="generator" content="quillgpt report">'
FIGURE = (450, 285)
MAIN_FIGURE = (1040, 400)
MAIN_FIGURE_NARROW = (400, 330)
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


def write_page(contents: Contents, path: Path) -> int:
    """Write the page, which replaces an older one at once; return its size in bytes."""
    text = html(contents)
    files.write_text(path, text)
    return len(text.encode())


def html(contents: Contents) -> str:
    """The whole page; the same contents give the same text."""
    from importlib.metadata import version

    from markupsafe import Markup

    template = _environment().from_string(_part("page.html.j2"))
    return template.render(contents=contents, style=_style(), mark=Markup(MARK), version=version("quillgpt")) + "\n"


def _environment() -> "Environment":
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    from quillgpt.report.drawing import svg

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    sizes = {"small": FIGURE, "wide": MAIN_FIGURE, "narrow": MAIN_FIGURE_NARROW}
    environment.filters["drawn"] = lambda plot, size: Markup(svg(plot, width=sizes[size][0], height=sizes[size][1]))
    environment.filters["look"] = look
    environment.filters["prose"] = lambda text: Markup(prose(str(escape(text))))
    environment.filters["chosen"] = chosen_samples
    return environment


def prose(escaped: str) -> str:
    """Escaped text with commands as code, and numbers kept together with their errors and units."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped).replace(" ± ", "\u00a0±\u00a0")
    return re.sub(r"(\d) (h|min|s|GB|MB|kB|seconds|tokens/s|million|billion)\b", "\\1\u00a0\\2", text)


def look(run: RunPart) -> dict[str, str]:
    """How the lines of a run look, for the legend."""
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
    return resources.files("quillgpt.report").joinpath(name).read_text(encoding="utf-8")
