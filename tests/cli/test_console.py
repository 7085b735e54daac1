"""The console of a run, log messages and progress; where standard output cannot be written, the run continues."""

import io
import logging
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console

from quillgpt.cli.console import ProgressReporter, RunStream, messages, progress_display, progress_text, run_console
from quillgpt.cli.main import run
from quillgpt.config import RunConfig
from quillgpt.run_dir import config_toml, read_metrics

REASON = "quill: cannot write to standard output: No space left on device; the run continues without its lines\n"


def write_three_lines(stream: TextIO) -> None:
    lines = RunStream(stream)
    for _ in range(3):
        assert lines.write("text") == 4
        lines.flush()


@pytest.fixture
def recipe(small_run: RunConfig, tmp_path: Path) -> str:
    """A recipe file of a tiny run."""
    path = tmp_path / "tiny.toml"
    path.write_text(config_toml(small_run))
    return str(path)


def test_a_full_disk_is_reported_once_and_the_run_continues_to_its_end(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_console().print("a line")
    assert capsys.readouterr().out == "a line\n"
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as stream:
        write_three_lines(stream)
    assert capsys.readouterr().err == REASON
    for number, buffering in enumerate((-1, 1)):
        out = tmp_path / f"run-{number}"
        with monkeypatch.context() as patch, open("/dev/full", "w", buffering) as stream:
            patch.setattr(sys, "stdout", stream)
            assert run(["train", recipe, "--out", str(out), "--steps", "6"]) == 0
        assert capsys.readouterr().err == REASON
        assert read_metrics(out / "metrics.jsonl")[-1]["step"] == 6


def test_a_closed_pipe_stops_the_run_once_saved_and_resumable(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    received = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with os.fdopen(writer, "w") as stream:
            write_three_lines(stream)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert received == [signal.SIGTERM]
    assert not capsys.readouterr().err
    command = [sys.executable, "-m", "quillgpt", "train", recipe, "--out", str(tmp_path / "run"), "--steps=100000"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stderr is not None
    while not child.stdout.readline().startswith("step"):  # before its first step, a run does not handle signals
        assert child.poll() is None
    child.stdout.close()
    with child.stderr:
        errors = child.stderr.read()
    assert child.wait(timeout=60) == 75
    assert "saved in" in errors
    assert errors.count("\n") == 1
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_library_messages_are_shown_until_the_block_ends(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("quillgpt.any.module")
    before = (logging.getLogger("quillgpt").handlers, logging.getLogger("quillgpt").level)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    with messages():
        logger.info("to [bold] standard error %d", 1)
        with messages(console):
            logger.info("dim")
            logger.warning("yellow")
            logger.error("red " * 100)
            logger.debug("not shown")
        with messages(is_shown=False):
            logger.error("not of the main process")
        logger.info("again")
    assert (logging.getLogger("quillgpt").handlers, logging.getLogger("quillgpt").level) == before
    assert capsys.readouterr() == ("", "to [bold] standard error 1\nagain\n")
    lines = console.file.getvalue().splitlines()
    assert [line[: line.index("m")] for line in lines] == ["\x1b[2", "\x1b[33", "\x1b[1;31"]


def test_progress_is_a_line_per_task_and_every_few_seconds_or_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert progress_text(4_000_000, 10_000_000, 0, 0.0) == "40%, 4.0M of 10.0M"
    assert progress_text(4_000_000, 10_000_000, 4_000_000, 2.0) == "40%, 4.0M of 10.0M, 2.0M/s, 0:03 left"
    assert progress_text(1, 3, 1, 2.0) == "33%, 1 of 3, 0.5/s, 0:04 left"
    now = 100.0
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        with progress_display() as show:
            for done in range(21):
                now += 1.0
                show("one", done, 21)
            show("two", 0, 1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["one", "one: 24%", "one: 48%", "one: 71%", "one: 95%", "two"]

    outer, inner = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with monkeypatch.context() as patch, os.fdopen(inner, "w") as terminal:
        patch.setattr(sys, "stderr", terminal)
        with ProgressReporter() as reporter:
            reporter.show("first", 0, 4)
            for done in range(3):
                time.sleep(0.05)
                reporter.show("second", done, 4000)
            time.sleep(0.3)
        shown = os.read(outer, 1 << 16).decode()
    os.close(outer)
    for words in ("━", "second", "2 of 4,000, ", " left"):
        assert words in shown
