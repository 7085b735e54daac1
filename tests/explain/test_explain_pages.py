"""What `quill explain` shows: every line of gpt2.py once, and values that come from running it."""

import io
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from quillgpt.explain import gpt2
from quillgpt.explain.drawing import Bar, Curve, Heat, tensor_line, visible
from quillgpt.explain.page import VALUES_WIDTH, code_width, print_section
from quillgpt.explain.sections import FILE, HEADING, read_sections
from quillgpt.explain.tiny_run import CONFIG, TinyRun
from quillgpt.explain.values import VALUES

SOURCE = FILE.read_text(encoding="utf-8")
SECTIONS = {section.name: section for section in read_sections()}
WIDE, NARROW = code_width() + VALUES_WIDTH + 2, 80
CODE_LINE = re.compile(r" *(\d+) ?(.*)")


@pytest.fixture(scope="module")
def run() -> TinyRun:
    return TinyRun()


@pytest.fixture(scope="module")
def values(run: TinyRun) -> dict:
    return {name: show(run) for name, show in VALUES.items()}


def printed(section, values, *, width: int, is_terminal: bool, encoding: str = "utf-8") -> str:
    """The page of a section as text."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, force_terminal=is_terminal, color_system=None, highlight=False)
    print_section(console, section, values)
    file.seek(0)
    return file.read()


def test_the_sections_are_the_whole_file() -> None:
    covered: dict[int, str] = {}
    for section in SECTIONS.values():
        for piece in section.pieces:
            for number, line in enumerate(piece.code.splitlines(), start=piece.first_line):
                assert number not in covered
                covered[number] = line
    for number, line in enumerate(SOURCE.splitlines(), start=1):
        if number in covered:
            assert covered[number] == line
        elif line and not HEADING.fullmatch(line):
            assert line.removeprefix("# ") in next(
                section.prose for section in SECTIONS.values() if line.removeprefix("# ") in section.prose
            )


def test_the_headings_are_numbered_and_named() -> None:
    assert [section.number for section in SECTIONS.values()] == list(range(8))
    assert list(SECTIONS) == ["start", "settings", "text", "weights", "model", "training", "sampling", "run"]


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize(("width", "is_terminal"), [(WIDE, True), (WIDE, False), (NARROW, False), (40, False)])
def test_a_page_has_every_code_line_of_its_section_once(name: str, width: int, is_terminal: bool, values) -> None:
    section = SECTIONS[name]
    page = printed(section, values, width=width, is_terminal=is_terminal)
    expected = {
        number: line
        for piece in section.pieces
        for number, line in enumerate(piece.code.splitlines(), start=piece.first_line)
    }
    shown: dict[int, str] = {}
    for line in page.splitlines():
        left = line[: code_width()].rstrip() if is_terminal else line
        found = CODE_LINE.fullmatch(left)
        if found and int(found[1]) in expected and (found[2] == expected[int(found[1])]):
            assert int(found[1]) not in shown
            shown[int(found[1])] = found[2]
    assert shown == expected
    assert section.title in page
    assert "…" not in page
    assert " ".join(page.split()).count(section.prose) == 1 or not section.prose


def test_a_narrow_terminal_breaks_lines_and_loses_nothing(values) -> None:
    page = printed(SECTIONS["model"], values, width=NARROW, is_terminal=True)
    assert max(map(len, page.splitlines())) <= NARROW
    without_space = "".join(page.split())
    for piece in SECTIONS["model"].pieces:
        for line in piece.code.splitlines():
            assert "".join(line.split()) in without_space


def test_values_stand_beside_the_code_or_below_it(values) -> None:
    side_by_side = printed(SECTIONS["model"], values, width=WIDE, is_terminal=True)
    stacked = printed(SECTIONS["model"], values, width=WIDE - 1, is_terminal=True)
    assert re.search(r"def attention_weights\(.*Tensor: +query +\(1, 2, 8, 16\)", side_by_side)
    assert re.search(r"^ +│ query +\(1, 2, 8, 16\)", stacked, re.MULTILINE)


@pytest.mark.parametrize("name", VALUES)
def test_nothing_that_is_shown_is_cut_off_by_its_column(name: str, values) -> None:
    def text(width: int) -> str:
        console = Console(file=io.StringIO(), width=width, color_system=None)
        for shown in values[name]:
            console.print(shown)
        return "".join(console.file.getvalue().split())

    assert text(VALUES_WIDTH) == text(200)


def test_values_belong_to_functions_of_the_file_and_every_function_has_some() -> None:
    named = {piece.name for section in SECTIONS.values() for piece in section.pieces if piece.name}
    assert set(VALUES) == named


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_page_can_be_written_in_every_encoding(encoding: str, values) -> None:
    for section in SECTIONS.values():
        assert printed(section, values, width=NARROW, is_terminal=False, encoding=encoding)


def test_the_tiny_run_learns_and_repeats_exactly(run: TinyRun) -> None:
    losses = run.training[1]
    assert losses[-1] < 0.1 * losses[0]
    torch.rand(3)
    assert TinyRun().training[1] == losses
    shares = gpt2.softmax(run.trained_calls["gpt"][0][1][0, -1])
    assert run.show([int(shares.argmax())]) == ["l"], "after 'the dog sat on the '"


def test_the_values_follow_the_functions_of_the_file(run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2, "gelu", lambda x: x + 7)
    monkeypatch.setattr(gpt2, "learning_rate", lambda step, config: 0.125)
    text = printed(SECTIONS["model"], {"gelu": VALUES["gelu"](run)}, width=NARROW, is_terminal=False)
    assert "gelu   4.00" in text
    assert "0.1250" in printed(
        SECTIONS["training"], {"learning_rate": VALUES["learning_rate"](run)}, width=NARROW, is_terminal=False
    )


def test_recording_leaves_the_file_as_it_was(run: TinyRun) -> None:
    before = dict(vars(gpt2))
    assert len(run.calls["attention_weights"]) == CONFIG.n_layer
    assert dict(vars(gpt2)) == before


def test_the_random_numbers_of_the_process_are_left_alone() -> None:
    before = torch.get_rng_state()
    _ = TinyRun().weights
    assert torch.equal(torch.get_rng_state(), before)


def test_a_heading_that_is_added_becomes_a_section() -> None:
    sections = read_sections(SOURCE + "\n\n# 8. More: of it\n# Why.\n\n\ndef more():\n    return 1\n")
    assert (sections[-1].name, sections[-1].prose, sections[-1].pieces[0].name) == ("more", "Why.", "more")


def drawn(what, *, colour: str | None = None, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=60, force_terminal=colour is not None, color_system=colour).print(what)
    file.seek(0)
    return file.read()


def test_drawings_follow_their_values() -> None:
    assert drawn(Bar(0.5)).strip() == "█" * 10
    assert drawn(Bar(0.5), encoding="ascii").strip() == "#" * 10
    assert drawn(Bar(0.0)).strip() == ""
    assert drawn(Bar(0.001)).strip() == "▏"
    assert drawn(Curve([0.0, 0.5, 1.0])).strip() == "▁▅█"
    heat = Heat(["a"], [torch.tensor([[1.0, float("nan")], [0.0, 0.6]])], ["x", "y"])
    assert [line.rstrip() for line in drawn(heat).splitlines()] == ["  a", "x ██", "y ░░▓▓"]
    assert "\x1b[48;2;255;150;40m" in drawn(heat, colour="truecolor")
    assert drawn(heat, encoding="ascii").isascii()
    assert tensor_line("x", torch.arange(5.0).view(1, 5)).plain.split() == [
        "x",
        "(1,",
        "5)",
        "0.00",
        "1.00",
        "2.00",
        "...",
    ]
    assert visible("a b\n\x1b") == "a_b\\n\\x1b"
    assert replace(Bar(1.0), width=3).width == 3
