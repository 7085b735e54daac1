"""`quill explain`: its sections, waiting for Enter, a run on the user's own text, and unusable files."""

import io
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from quillgpt.cli import explain
from quillgpt.cli.explain import main
from quillgpt.errors import ConfigError, DataError
from quillgpt.explain import gpt2
from quillgpt.explain.page import read_sections


def test_in_a_pipe_the_entire_file_is_printed_as_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    for section in read_sections():
        assert shown.count(f"{section.number}  {section.title}") == 1
    for line in Path(gpt2.__file__).read_text().splitlines():
        assert not line or line.startswith("#") or line in shown


def test_sections_are_listed_and_shown_by_name_and_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[str(s.number), s.name] for s in read_sections()]
    for name in ("text", "2"):
        assert main(["--section", name]) == 0
        shown = capsys.readouterr().out
        words = ("def learn_merges", "the_dog_sat_on_the_", "def gpt")
        assert [word in shown for word in words] == [True, True, False]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'modle'.*\(did you mean model\?\)"):
        main(["--section", "modle"])
    for words in ("--run x --list", "--run x --section text", "--run x --steps -1", "--run x --steps 1000001"):
        with pytest.raises(ConfigError, match=r"use one of them|--steps: "):
            main(words.split())


class Terminal(io.StringIO):
    """What is typed, or what is shown."""

    def isatty(self) -> bool:
        return True


def test_only_at_a_terminal_it_waits_for_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    for typed, continues in (("\n", True), ("q\n", False), ("Quit\n", False), ("", False)):
        monkeypatch.setattr(sys, "stdin", Terminal(typed))
        console = Console(file=io.StringIO(), force_terminal=True)
        assert explain.wants_more(console) is continues
        assert "Enter: continue" in console.file.getvalue()
    assert explain.wants_more(Console(file=io.StringIO(), force_terminal=False))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert explain.wants_more(Console(file=io.StringIO(), force_terminal=True))


def test_enter_shows_the_next_section_and_q_quits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "170")
    monkeypatch.setattr(sys, "stdin", Terminal("\nq\n"))
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main([]) == 0
    shown = sys.stdout.getvalue()
    assert [title in shown for title in ("0  Start", "1  Settings", "2  Text")] == [True, True, False]


def test_a_run_shows_losses_baselines_and_a_sample_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text((subprocess.__doc__ or "") + (random.__doc__ or "") + Path(random.__file__).read_text()[:9000])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(explain, "MAX_THREADS", 1)
    assert main(["--run", "text.txt", "--steps", "3"]) == 0
    shown = capsys.readouterr().out
    words = "3 steps of 16 x 64 tokens|step     0   loss 6.|step     2   loss|bits per byte|uniform guess|token freq"
    for part in f"{words}|this model|the validation text begins|the model continues".split("|"):
        assert part in shown
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]

    monkeypatch.setattr("quillgpt.explain.run.run", lambda text, config: iter(["a\x1b[31mb\nc"]))
    main(["--run", "text.txt"])
    assert capsys.readouterr().out == "a\\x1b[31mb\nc\n", "a sample cannot control the terminal"


def test_threads_are_limited_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    for cores, threads in ((64, 3), (2, 2)):
        monkeypatch.setattr("quillgpt.runtime.available_cores", lambda cores=cores: cores)
        with explain.at_most_threads(3):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == before


def test_an_unusable_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "text"
    for content, message in (
        (None, "cannot be read: No such file or directory"),
        (b"", "0 bytes (must be >= 4,000); use a longer text"),
        (b"abc" * 100, "300 bytes (must be >= 4,000); use a longer text"),
        (b"a" * 5000 + b"\xff", "not UTF-8 text: byte 0xff at offset 5,000; use a plain text file"),
        (b"\x7fELF\0" + b"a" * 5000, "not UTF-8 text: byte 0x00 at offset 4; use a plain text file"),
        (b"a" * 5000 + "é".encode()[:1], "byte 0xc3 at offset 5,000"),
        (b"all work and no play\n" * 1000, "take a longer text that repeats itself less"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(message)) as raised:
            main(["--run", str(path), "--steps", "1"])
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)
    for name in (str(tmp_path), "a\0b"):
        with pytest.raises(DataError, match="cannot be read"):
            main(["--run", name])


def test_of_a_long_file_the_beginning_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("é" * 5000, encoding="utf-8")
    monkeypatch.setattr(explain, "MAX_BYTES", 4001)  # in the middle of a character
    assert explain.read_text(str(path)) == "é" * 2000
    assert "its first 4,001 bytes are used" in capsys.readouterr().err
