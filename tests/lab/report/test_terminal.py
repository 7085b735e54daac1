"""The report as text in a terminal."""

import io
import sys
from pathlib import Path

import pytest
from recorded_runs import hostile_report, make_run, report_of
from rich.cells import cell_len
from rich.console import Console

from quillgpt.lab.report.page import Report
from quillgpt.lab.report.terminal import print_report


def shown(report: Report, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")  # as quill's
    print_report(Console(file=file, width=width), report)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def test_the_report_fits_the_terminal_and_has_the_numbers(tmp_path: Path) -> None:
    report = report_of(make_run(tmp_path / "one", samples={10: "once upon"}), make_run(tmp_path / "two", lr=1e-2))
    expected = ["Two runs side by side", "2.169 ± 0.030", "once upon", "Gradient norm", "lr", "●"]
    expected += ["Reference band of one and two: no band", "┄ clipped at 1"]
    for width in (80, 140):
        text = shown(report, width)
        assert max(map(cell_len, text.splitlines())) <= width
        assert [words for words in expected if words not in text] == []


def test_a_hostile_run_moves_no_cursor(tmp_path: Path) -> None:
    assert not set(shown(hostile_report(tmp_path), 80)) & set("\x1b\x00\r\x9b\u202e")


def test_a_terminal_without_unicode_gets_letters(tmp_path: Path) -> None:
    text = shown(report_of(make_run(tmp_path / "one"), make_run(tmp_path / "two")), 80, "ascii")
    assert "aa one\nbb two" in text
    assert "bbbb" in text


def test_text_needs_no_matplotlib_and_no_jinja2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optional = ("matplotlib", "jinja2")
    for name in [*optional, *(name for name in sys.modules if name.partition(".")[0] in optional)]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "Validation loss" in shown(report_of(make_run(tmp_path / "one")), 80)
