"""The report as text, and curves as characters."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile_run import hostile_contents
from recorded_runs import contents, make_run
from rich.cells import cell_len
from rich.console import Console

from quillgpt.report.characters import Drawing
from quillgpt.report.contents import Contents
from quillgpt.report.plot import Area, Kind, Line, Plot
from quillgpt.report.terminal import print_report


def shown(report: Contents, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")  # as quill's
    print_report(Console(file=file, width=width), report)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def drawn(y: list[float], *, encoding: str = "utf-8", is_logarithmic: bool = False) -> list[str]:
    line = Line(run=0, label="a", kind=Kind.STRONG, x=np.arange(float(len(y))), y=np.array(y))
    limits = (min(y), max(y))
    plot = Plot(
        key="k",
        title="T",
        x_label="x",
        y_label="y",
        lines=[line],
        caption="",
        limits=limits,
        is_logarithmic=is_logarithmic,
    )
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=28).print(Drawing(plot, 5))
    file.flush()
    return [row[8:] for row in file.buffer.getvalue().decode(encoding).splitlines()[1:6]]


def middles(rows: list[str]) -> list[int]:
    """The row of the curve in each column, from above."""
    return [next(row for row, text in enumerate(rows) if text[column : column + 1].strip()) for column in range(20)]


def test_a_falling_curve_falls_from_corner_to_corner() -> None:
    rows = drawn([4.0, 3.0, 2.0, 1.0])
    assert (rows[0][0], rows[4][19]) == ("⠑", "⢄") or (rows[0][0] != " " and rows[4][19] != " ")
    assert middles(rows) == sorted(middles(rows))
    assert set(middles(rows)) == set(range(5))


def test_a_logarithmic_curve_is_straight_where_it_falls_by_factors() -> None:
    straight, factors = drawn([4.0, 3.0, 2.0, 1.0]), drawn([1000.0, 100.0, 10.0, 1.0], is_logarithmic=True)
    assert np.abs(np.array(middles(straight)) - middles(factors)).max() <= 1


def test_without_unicode_the_curve_is_of_letters() -> None:
    rows = drawn([4.0, 3.0, 2.0, 1.0], encoding="ascii")
    assert set("".join(rows)) == {"a", " "}


def test_the_edges_of_a_band_are_drawn_behind_the_curve() -> None:
    ends = np.array([0.0, 3.0])
    line = Line(run=0, label="a", kind=Kind.STRONG, x=ends, y=np.array([5.0, 5.0]))
    band = Area(run=-1, x=ends, low=np.array([1.0, 1.0]), high=np.array([9.0, 9.0]))
    plot = Plot(
        key="k", title="T", x_label="x", y_label="y", lines=[line], areas=[band], caption="", limits=(0.0, 10.0)
    )
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file, width=28).print(Drawing(plot, 5))
    file.flush()
    rows = [row[8:].strip() for row in file.buffer.getvalue().decode().splitlines()[1:6]]
    assert rows == ["." * 20, "", "a" * 20, "", "." * 20]


def test_the_whole_report_fits_the_terminal_and_holds_the_numbers(tmp_path: Path) -> None:
    report = contents(make_run(tmp_path / "one", samples={10: "once upon"}), make_run(tmp_path / "two", lr=1e-2))
    for width in (80, 140):
        text = shown(report, width)
        assert max(map(cell_len, text.splitlines())) <= width
        for words in (
            "Two runs side by side",
            "2.169 ± 0.030",
            "once upon",
            "Gradient norm",
            "lr",
            "Reference band of one and two: no band",
        ):
            assert words in text, words
    assert "●" in text


def test_a_hostile_run_moves_no_cursor(tmp_path: Path) -> None:
    assert not set(shown(hostile_contents(tmp_path), 80)) & set("\x1b\x00\r\x9b\u202e")


def test_a_terminal_without_unicode_gets_letters_and_escapes(tmp_path: Path) -> None:
    text = shown(contents(make_run(tmp_path / "one"), make_run(tmp_path / "two")), 80, "ascii")
    assert "aa one\nbb two" in text


def test_text_needs_no_matplotlib_and_no_jinja2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("matplotlib", "jinja2")]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("matplotlib", "jinja2"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "Held-out loss" in shown(contents(make_run(tmp_path / "one")), 80)
