"""Figures by matplotlib: the same bytes for the same plot, whoever's settings, and readable as files."""

import io
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from recorded_runs import contents, make_run

from quillgpt.report.drawing import free_place, png, svg
from quillgpt.report.figure_files import write_figures
from quillgpt.report.plot import Kind, Level, Line, Plot


def plot(**changes: object) -> Plot:
    line = Line(run=0, label="a", kind=Kind.STRONG, x=np.array([0.0, 1.0]), y=np.array([0.0, 1.0]))
    known: dict = {
        "title": "T",
        "x_label": "tokens",
        "y_label": "y",
        "lines": [line],
        "caption": "",
        "limits": (0.0, 1.0),
    }
    return Plot(**{"key": "t", **known, **changes})


def test_the_settings_of_the_user_change_nothing() -> None:
    before = svg(plot(), width=300, height=200), png(plot())
    with mpl.rc_context({"lines.linewidth": 9, "svg.fonttype": "path", "figure.dpi": 30, "axes.grid": True}):
        assert (svg(plot(), width=300, height=200), png(plot())) == before


def test_a_png_is_wide_enough_for_a_paper_and_white(tmp_path: Path) -> None:
    image = matplotlib.image.imread(io.BytesIO(png(plot())))
    assert image.shape[1] > 1_200
    assert image[0, 0].tolist() == [1.0] * image.shape[2]
    assert image[..., :3].min() < 0.5


def test_every_figure_is_a_file(tmp_path: Path) -> None:
    lines = [{"step": step, "tokens": step, "loss": 1 / step, "lr": 1e-3} for step in range(1, 9)]
    written = write_figures(contents(make_run(tmp_path / "a", lines)), tmp_path / "figures")
    assert [path.name for path in written] == ["loss.png", "learning-rate.png"]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {path.name for path in written}


def test_a_legend_shows_any_name() -> None:
    ends = np.array([0.0, 1.0])
    names = ["$\\frac{$ 日本", "a_b^2 \\sqrt"]  # a formula that cannot be read, and what the font does not have
    lines = [Line(run=run, label=name, kind=Kind.STRONG, x=ends, y=ends) for run, name in enumerate(names)]
    assert png(plot(lines=lines)).startswith(b"\x89PNG")


def test_ticks_keep_their_digits() -> None:
    small = Line(run=0, label="a", kind=Kind.STRONG, x=np.array([0.0, 1.0]), y=np.array([0.0, 0.01]))
    assert ">0.002<" in svg(plot(lines=[small], limits=(0.0, 0.0101)), width=300, height=160)


def test_a_single_point_can_be_seen(tmp_path: Path) -> None:
    one = Line(run=0, label="a", kind=Kind.STRONG, x=np.array([5.0]), y=np.array([0.5]))
    two = Line(run=0, label="a", kind=Kind.STRONG, x=np.array([4.0, 5.0]), y=np.array([0.5, 0.5]))
    marks = [svg(plot(lines=[line]), width=300, height=200).count("var(--run-0)") for line in (one, two)]
    assert marks[0] > marks[1]


def test_the_name_of_a_level_keeps_clear_of_curves_and_of_other_names() -> None:
    free = {"font": 12.0, "pixels": (450, 285)}
    level = Level(value=0.5, label="GPT-2 124M")
    falling = Line(run=0, label="a", kind=Kind.STRONG, x=np.array([0.0, 0.9, 1.0]), y=np.array([0.9, 0.1, 0.55]))
    flat = Line(run=0, label="a", kind=Kind.STRONG, x=np.array([0.0, 1.0]), y=np.array([0.1, 0.1]))
    right = free_place(plot(lines=[flat]), level, taken=[], **free)
    assert right[1] > 0.99
    assert free_place(plot(lines=[flat]), level, taken=[right], **free)[1] < right[0]
    assert free_place(plot(lines=[falling]), level, taken=[], **free)[1] < 0.9


def test_the_same_run_has_one_colour_in_every_figure(tmp_path: Path) -> None:
    report = contents(make_run(tmp_path / "one"), make_run(tmp_path / "two"))
    for drawn in report.figures:
        assert {line.label: line.run for line in drawn.lines} == {"one": 0, "two": 1}


@pytest.mark.parametrize("values", [(1e-3, 1e3), (0.0, 5.0)])
def test_a_logarithmic_axis_can_be_drawn(values: tuple[float, float]) -> None:
    line = Line(run=0, label="a", kind=Kind.STRONG, x=np.array([0.0, 1.0]), y=np.array(values))
    assert "svg" in svg(plot(lines=[line], limits=(1e-3, 1e4), is_logarithmic=True), width=300, height=200)
