"""Standard output of a long run: where it cannot be written the run matters more."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from quillgpt.cli.output import Lines, run_console
from quillgpt.config import RunConfig
from quillgpt.run_dir import config_toml, read_metrics


def full_disk() -> TextIO:
    """A stream on a disk without space."""
    return open("/dev/full", "w")


def closed_pipe() -> TextIO:
    """A stream into a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def test_lines_are_handed_on(capsys: pytest.CaptureFixture) -> None:
    console = run_console()
    console.print("a line")
    assert capsys.readouterr().out == "a line\n"


@needs_dev_full
def test_a_disk_that_is_full_is_told_once_and_stops_nothing(capsys: pytest.CaptureFixture) -> None:
    with full_disk() as stream:
        lines = Lines(stream)
        for _ in range(3):
            assert lines.write("text") == 4
            lines.flush()
    told = "quill: standard output cannot be written: No space left on device; the run goes on without its lines\n"
    assert capsys.readouterr().err == told


def test_a_closed_pipe_asks_the_run_to_stop_once(capsys: pytest.CaptureFixture) -> None:
    asked = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        with closed_pipe() as stream:
            lines = Lines(stream)
            for _ in range(3):
                lines.write("text")
                lines.flush()
    finally:
        signal.signal(signal.SIGTERM, former)
    assert asked == [signal.SIGTERM]
    assert not capsys.readouterr().err


@pytest.fixture
def recipe(small_run: RunConfig, tmp_path: Path) -> str:
    """A recipe file of a tiny run of many steps."""
    path = tmp_path / "tiny.toml"
    path.write_text(config_toml(small_run))
    return str(path)


def test_a_run_whose_reader_leaves_is_saved_and_says_how_to_go_on(recipe: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quillgpt", "train", recipe, "--out", str(tmp_path / "run"), "--steps=100000"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.readline()
    run.stdout.close()
    with run.stderr:
        said = run.stderr.read()
    assert run.wait(timeout=60) == 75
    assert "saved in" in said
    assert said.count("\n") == 1
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


@needs_dev_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_run_whose_log_is_on_a_full_disk_goes_on_to_its_end(
    unbuffered: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    command = [sys.executable, "-m", "quillgpt", "train", recipe, "--out", str(tmp_path / "run")]
    with full_disk() as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 20
