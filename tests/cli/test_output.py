"""Standard output of a long run: where it cannot be written the run matters more."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quillgpt.cli.output import Lines, run_console
from quillgpt.config import RunConfig
from quillgpt.run_dir import config_toml, read_metrics


class Broken(io.StringIO):
    """A stream that fails in one way."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


def test_lines_are_handed_on(capsys: pytest.CaptureFixture) -> None:
    console = run_console()
    console.print("a line")
    assert capsys.readouterr().out == "a line\n"


def test_a_disk_that_is_full_is_told_once_and_stops_nothing(capsys: pytest.CaptureFixture) -> None:
    lines = Lines(Broken(errno.ENOSPC))
    for _ in range(3):
        assert lines.write("text") == 4
        lines.flush()
    told = "quill: standard output cannot be written: No space left on device; the run goes on without its lines\n"
    assert capsys.readouterr().err == told


def test_a_closed_pipe_asks_the_run_to_stop() -> None:
    asked = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        Lines(Broken(errno.EPIPE)).write("text")
    finally:
        signal.signal(signal.SIGTERM, former)
    assert asked == [signal.SIGTERM]


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
    said = run.stderr.read()
    assert run.wait(timeout=60) == 75
    assert "saved in" in said
    assert said.count("\n") == 1
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_run_whose_log_is_on_a_full_disk_goes_on_to_its_end(recipe: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quillgpt", "train", recipe, "--out", str(tmp_path / "run")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 20
