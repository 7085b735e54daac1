"""`quill prepare` on the command line: what it prints, where it writes, its exit codes."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from quillgpt.cli import prepare as command
from quillgpt.config import DataConfig
from quillgpt.data.directory import data_directory
from quillgpt.data.text_to_shards import Progress
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import ConfigError, DataError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a text in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(
        "All happy families are alike; every unhappy one is unhappy in its own way. " * 20
    )
    return tmp_path


def test_the_last_line_says_what_is_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["text", "--path", "text.txt", "--tokenizer", "byte", "--out", "data/tolstoy"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        "complete: 1,351 tokens in 1 shard (train), 151 tokens in 1 shard (val); tokenizer byte; "
        "held out: the last tenth, from character 1,350 on; data/tolstoy/\n"
    )
    assert printed.err == "preparing text in data/tolstoy/\n"
    assert TokenDataset.open(here / "data" / "tolstoy", "train").token_count == 1351


def test_flags_reach_the_preparation(here: Path) -> None:
    (here / "a.jsonl").write_text(f'{{"body": "{"some text to learn from " * 30}"}}\n' * 3)
    flags = ["--path=a.jsonl", "--text_field", "body", "--documents", "2", "--tokenizer", "bpe", "--vocab-size", "270"]
    assert command.main(["jsonl", *flags, "--out", "data/mine"]) == 0
    dataset = TokenDataset.open(here / "data" / "mine", "train")
    assert dataset.vocab_size == 270
    assert dataset.text_bytes == 2 * 24 * 30 * 9 // 10


def test_format_nanogpt_writes_its_two_files_too(here: Path) -> None:
    command.main(["text", "--path", "text.txt", "--tokenizer", "byte", "--out", "d", "--format", "nanogpt"])
    for split in ("train", "val"):
        tokens = TokenDataset.open(here / "d", split).shards[0].tokens
        assert np.fromfile(here / "d" / f"{split}.bin", dtype=np.uint16).tolist() == tokens.tolist()


def test_notes_are_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "text.txt").write_bytes(b"caf\xe9 " * 20)
    command.main(["text", "--path", "text.txt", "--tokenizer", "byte", "--errors", "replace", "--out", "d"])
    assert "note: 20 places that were not UTF-8 were replaced by U+FFFD\n" in capsys.readouterr().err


def test_without_out_the_directory_is_the_one_that_train_looks_for(here: Path) -> None:
    command.main(["text", "--path", "text.txt", "--tokenizer", "byte"])
    config = DataConfig(source="text", path="text.txt", tokenizer="byte")
    assert (here / data_directory(config, 50257) / "manifest.json").exists()


WRONG = {
    "no source": ([], ConfigError, r"which source\? .* python, text, jsonl"),
    "unknown source": (["pyton"], ConfigError, "did you mean python"),
    "unknown flag": (["text", "--pth", "x"], ConfigError, "no flag --pth.*--path"),
    "unknown tokenizer": (["text", "--path", "text.txt", "--tokenizer", "gpt3"], ConfigError, "gpt2"),
    "unknown format": (["text", "--path", "text.txt", "--format", "nanogtp"], ConfigError, "did you mean nanogpt"),
    "unknown errors": (["text", "--path", "text.txt", "--errors", "ignore"], ConfigError, "errors = 'ignore'.*strict"),
    "negative documents": (["text", "--path", "text.txt", "--documents=-1"], ConfigError, "documents = -1"),
    "negative processes": (["text", "--path", "text.txt", "--processes=-1"], ConfigError, "at least 0"),
    "no number": (["text", "--path", "text.txt", "--documents", "many"], ConfigError, "many"),
    "missing file": (["text", "--path", "nowhere.txt"], DataError, "nowhere.txt: no such file"),
    "missing tokenizer": (
        ["text", "--path", "text.txt", "--tokenizer", "my/tokenizer.json"],
        DataError,
        "tokenizer.json",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(mistake: str, here: Path) -> None:
    arguments, kind, message = WRONG[mistake]
    with pytest.raises(kind, match=message) as caught:
        command.main(arguments)
    assert "\n" not in str(caught.value)
    assert [path.name for path in here.iterdir()] == ["text.txt"]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "quillgpt", *arguments], cwd=folder, capture_output=True, text=True)


def test_the_command_ends_with_the_documented_exit_code(here: Path) -> None:
    (here / "bad.txt").write_bytes(b"\xff" * 100)
    for path, code in [("text.txt", 0), ("bad.txt", 65), ("", 2)]:
        done = run(["prepare", "text", "--path", path, "--tokenizer", "byte", "--out", f"data{code}"], here)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 2


def test_help_needs_neither_torch_nor_numpy() -> None:
    script = (
        "import sys; import quillgpt.cli.prepare; print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


def test_preparing_needs_no_torch(here: Path) -> None:
    script = (
        "import sys; from quillgpt.cli.prepare import main;"
        "main(['text', '--path', 'text.txt', '--tokenizer', 'byte']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=here, capture_output=True, text=True)
    assert done.stdout.endswith("False\n")


def state(done: int, **changes) -> Progress:
    values = {"bytes_done": done, "bytes_total": 10_000_000, "documents": 1234, "bytes_per_second": 2e6}
    return Progress(**(values | changes))


def test_progress_tells_bytes_documents_rate_and_time_left() -> None:
    assert command.progress_text(state(4_000_000)) == "4.0 of about 10.0 MB, 1,234 documents, 2.0 MB/s, 0:03 left"
    assert command.progress_text(state(0, bytes_per_second=500)).endswith("0.0 MB/s, 5:33:20 left")


def test_without_a_terminal_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with command.progress_display() as show:
        for _ in range(21):
            now += 1.0
            show(state(4_000_000))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(re.match(r"4\.0 of about 10\.0 MB", line) for line in lines)


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_on_a_terminal_progress_is_a_bar(here: Path) -> None:
    import pty

    script = (
        "from quillgpt.cli.prepare import progress_display; from quillgpt.data.text_to_shards import Progress\n"
        "with progress_display() as show:\n"
        "    show(Progress(bytes_done=5, bytes_total=10, documents=3, bytes_per_second=1e6))\n"
        "    import time; time.sleep(0.3)"
    )
    outer, inner = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", script], stderr=inner, stdin=inner, env=environment)
    os.close(inner)
    shown = os.read(outer, 1 << 16).decode()
    os.close(outer)
    assert done.returncode == 0
    assert "50 %" in shown
    assert "3 documents" in shown
    assert "━" in shown
