"""`quill explain` as a user sees it: sections, stepping, a run on a text of one's own, and files that are none."""

import io
import os
import pty
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from rich.console import Console

from quillgpt.cli import explain
from quillgpt.cli.explain import main
from quillgpt.errors import ConfigError, DataError
from quillgpt.explain import gpt2
from quillgpt.explain.sections import read_sections
from quillgpt.explain.tiny_run import SENTENCES

QUILL = [sys.executable, "-m", "quillgpt", "explain"]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Some English that does not repeat itself: docstrings of the standard library."""
    path = tmp_path / "text.txt"
    path.write_text((subprocess.__doc__ or "") + (random.__doc__ or "") + Path(random.__file__).read_text()[:9000])
    return path


def test_without_a_terminal_the_whole_file_is_printed_in_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    for section in read_sections():
        assert shown.count(f"{section.number}  {section.title}") == 1
    for line in Path(gpt2.__file__).read_text().splitlines():
        if line and not line.startswith("#"):
            assert line in shown


def test_list_names_the_sections(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[str(s.number), s.name] for s in read_sections()]


@pytest.mark.parametrize("asked", ["text", "2"])
def test_a_section_is_shown_by_name_and_by_number(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--section", asked]) == 0
    shown = capsys.readouterr().out
    assert "def learn_merges" in shown
    assert "the_dog_sat_on_the_" in shown
    assert "def gpt" not in shown


def test_a_misspelt_section_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"section = 'modle' does not exist \(did you mean model\?\)"):
        main(["--section", "modle"])


@pytest.mark.parametrize(
    "arguments", [["--run", "x", "--list"], ["--run", "x", "--section", "text"], ["--run", "x", "--steps", "-1"]]
)
def test_arguments_that_do_not_go_together_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError):
        main(arguments)


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "goes_on"), [("\n", True), ("q\n", False), ("Quit\n", False), ("", False)])
def test_a_person_at_a_terminal_is_asked_before_the_next_section(
    typed: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard(typed))
    console = Console(file=io.StringIO(), force_terminal=True)
    assert explain.wants_more(console) is goes_on
    assert "Enter: go on" in console.file.getvalue()


def test_nobody_is_asked_where_nobody_can_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard(""))
    assert explain.wants_more(Console(file=io.StringIO(), force_terminal=False))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert explain.wants_more(Console(file=io.StringIO(), force_terminal=True))


def test_on_a_real_terminal_enter_shows_the_next_section_and_q_leaves() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "170"}
    process = subprocess.Popen(QUILL, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    watch = threading.Timer(240, process.kill)
    watch.start()
    os.write(ours, b"\nq\n")
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        shown += piece
    os.close(ours)
    watch.cancel()
    assert process.wait(timeout=60) == 0
    assert b"0  Start" in shown
    assert b"1  Settings" in shown
    assert b"2  Text" not in shown


def test_a_run_tells_losses_baselines_and_a_sample_and_writes_nothing(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(explain, "MOST_THREADS", 1)  # the other core has other tests to run
    assert main(["--run", str(text_file), "--steps", "3"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "3 steps of 16 x 64 tokens",
        "step     0   loss 6.",
        "step     2   loss",
        "guessed evenly",
        "guessed by frequency",
        "this model",
        "bits per byte",
        "the held-out text begins",
        "the model continues",
    ):
        assert words in shown
    assert [path.name for path in tmp_path.iterdir()] == [text_file.name]


@pytest.mark.parametrize(("cores", "threads"), [(64, 3), (2, 2)])
def test_threads_are_few_and_given_back(cores: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("quillgpt.hardware.available_cores", lambda: cores)
    with explain.at_most_threads(3):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == before


BAD_FILES = {
    "missing": (None, "cannot be read: No such file or directory"),
    "empty": (b"", "is empty; take a longer text"),
    "tiny": (b"abc" * 100, "300 bytes, at least 4,000 are needed to learn from; take a longer text"),
    "not UTF-8": (b"a" * 5000 + b"\xff", "is not a text in UTF-8: byte 0xff at offset 5,000; take a plain text file"),
    "binary": (b"\x7fELF\0" + b"a" * 5000, "is not a text in UTF-8: byte 0x00 at offset 4; take a plain text file"),
    "cut within a character": (b"a" * 5000 + "é".encode()[:1], "byte 0xc3 at offset 5,000"),
    "one line again and again": (b"all work and no play\n" * 1000, "take a longer text that repeats itself less"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_learned_from_is_one_line(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(DataError) as raised:
        main(["--run", str(path), "--steps", "1"])

    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_and_a_name_with_a_nul_are_one_line_too(tmp_path: Path) -> None:
    for name in (str(tmp_path), "a\0b"):
        with pytest.raises(DataError, match="cannot be read"):
            main(["--run", name])


def test_of_a_long_file_the_beginning_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("é" * 5000, encoding="utf-8")
    monkeypatch.setattr(explain, "MOST_BYTES", 4001)  # in the middle of a character
    assert explain.read_text(str(path)) == "é" * 2000
    assert "its first 4,001 bytes are used" in capsys.readouterr().err


def test_what_the_model_writes_cannot_command_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(random.Random(1).choices(SENTENCES, k=300)))
    monkeypatch.setattr("quillgpt.explain.run.run", lambda text, config: iter(["a\x1b[31mb\nc"]))
    main(["--run", str(path)])
    assert capsys.readouterr().out == "a\\x1b[31mb\nc\n"
