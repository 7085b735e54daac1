"""Figures by matplotlib: the same bytes for the same plot, colours that can be seen, readable files."""

import io
import itertools
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from recorded_runs import make_run, report_of

from quillgpt.cli.report import MOST_RUNS
from quillgpt.lab.report.plot import (
    DARK,
    LIGHT,
    RUNS_ON_DARK,
    RUNS_ON_LIGHT,
    Kind,
    Line,
    Plot,
    colour_number,
    dash,
    free_place,
    png,
    svg,
    write_figures,
)


def line(x: list[float], y: list[float], *, run: int = 0, label: str = "a") -> Line:
    return Line(run=run, label=label, kind=Kind.STRONG, x=np.array(x), y=np.array(y))


def plot(*lines: Line, **changes: Any) -> Plot:
    drawn = list(lines) or [line([0, 1], [0, 1])]
    return Plot(title="T", x_label="tokens", y_label="y", lines=drawn, caption="", **{"limits": (0.0, 1.0)} | changes)


def drawn(*lines: Line, **changes: Any) -> str:
    return svg(plot(*lines, **changes), width=300, height=200)


def test_matplotlib_settings_of_the_user_change_nothing() -> None:
    before = drawn(), png(plot())
    with mpl.rc_context({"lines.linewidth": 9, "svg.fonttype": "path", "figure.dpi": 30, "axes.grid": True}):
        assert (drawn(), png(plot())) == before


def test_a_png_is_wide_enough_for_a_paper_and_white() -> None:
    image = matplotlib.image.imread(io.BytesIO(png(plot())))
    assert image.shape[1] > 1_200
    assert image[0, 0].tolist() == [1.0] * image.shape[2]
    assert image[..., :3].min() < 0.5


def test_every_figure_is_a_file(tmp_path: Path) -> None:
    lines = [{"step": step, "tokens": step, "train_loss": 1 / step, "lr": 1e-3} for step in range(1, 9)]
    written = write_figures(report_of(make_run(tmp_path / "a", lines)).plots, tmp_path / "figures")
    assert [path.name for path in written] == ["loss.png", "learning-rate.png"]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {path.name for path in written}


def test_a_legend_shows_any_name() -> None:
    names = ["$\\frac{$ 日本", "a_b^2 \\sqrt"]  # an invalid formula, and characters that the font does not have
    lines = [line([0, 1], [0, 1], run=run, label=name) for run, name in enumerate(names)]
    assert png(plot(*lines)).startswith(b"\x89PNG")


def test_small_values_keep_their_digits_and_single_points_are_marked() -> None:
    assert ">0.002<" in drawn(line([0, 1], [0, 0.01]), limits=(0.0, 0.0101))
    one, two = drawn(line([5], [0.5])), drawn(line([4, 5], [0.5, 0.5]))
    assert one.count("var(--run-0)") > two.count("var(--run-0)")
    for values in ([1e-3, 1e3], [0.0, 5.0]):
        assert "svg" in drawn(line([0, 1], values), limits=(1e-3, 1e4), is_logarithmic=True)


def test_the_name_of_a_level_avoids_curves_and_other_names() -> None:
    place = {"font": 12.0, "pixels": (450, 285)}
    falling = plot(line([0, 0.9, 1], [0.9, 0.1, 0.55]), levels={"GPT-2 124M": 0.5})
    flat = plot(line([0, 1], [0.1, 0.1]), levels={"GPT-2 124M": 0.5})
    right = free_place(flat, "GPT-2 124M", taken=[], **place)
    assert right[1] > 0.99
    assert free_place(flat, "GPT-2 124M", taken=[right], **place)[1] < right[0]
    assert free_place(falling, "GPT-2 124M", taken=[], **place)[1] < 0.9


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    shares = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_lines_and_text_have_contrast_in_both_schemes() -> None:
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)  # that of the standard
    for colours, runs in ((LIGHT, RUNS_ON_LIGHT), (DARK, RUNS_ON_DARK)):
        assert min(contrast(run, colours["ground"]) for run in runs) >= 3.0
        for text, ground in itertools.product(("text", "muted", "accent"), ("ground", "raised")):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def test_every_run_of_a_report_has_its_own_look_in_every_figure(tmp_path: Path) -> None:
    assert len({(colour_number(run), dash(run)) for run in range(MOST_RUNS)}) == MOST_RUNS
    for figure in report_of(make_run(tmp_path / "one"), make_run(tmp_path / "two")).figures:
        assert {line.label: line.run for line in figure.lines} == {"one": 0, "two": 1}
