"""`quill prepare` on the command line: what it prints, where it writes, its exit codes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quillgpt.cli import prepare as command
from quillgpt.config import DataConfig
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.prepare import data_directory
from quillgpt.errors import ConfigError, DataError

TEXT = ["text", "--path", "text.txt"]
BYTES = [*TEXT, "--tokenizer", "byte"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a text in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(
        "All happy families are alike; every unhappy one is unhappy in its own way. " * 20
    )
    return tmp_path


def test_the_last_line_states_what_is_prepared_in_both_formats(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*BYTES, "--out", "data/tolstoy", "--format", "nanogpt"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        "complete: 1,351 tokens in 1 shard (train), 151 tokens in 1 shard (val); tokenizer byte; "
        "validation: the last tenth, from character 1,350 on; data/tolstoy/\n"
    )
    assert printed.err == "preparing text in data/tolstoy/\nencoding bytes of text\n"
    assert TokenDataset.open(here / "data" / "tolstoy", "train").token_count == 1351
    for split in ("train", "val"):
        tokens = TokenDataset.open(here / "data" / "tolstoy", split).shards[0].tokens
        assert np.fromfile(here / "data" / "tolstoy" / f"{split}.bin", dtype=np.uint16).tolist() == tokens.tolist()


def test_flags_reach_the_preparation(here: Path) -> None:
    (here / "a.jsonl").write_text(f'{{"body": "{"some text to learn from " * 30}"}}\n' * 3)
    flags = ["--path=a.jsonl", "--text_field", "body", "--documents", "2", "--tokenizer", "bpe", "--vocab-size", "270"]
    assert command.main(["jsonl", *flags, "--out", "data/mine"]) == 0
    dataset = TokenDataset.open(here / "data" / "mine", "train")
    assert dataset.vocab_size == 270
    assert dataset.text_bytes == 2 * 24 * 30 * 9 // 10


def test_notes_are_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "text.txt").write_bytes(b"caf\xe9 " * 20)
    command.main([*BYTES, "--errors", "replace", "--out", "d"])
    assert "note: 20 places that were not UTF-8 were replaced by U+FFFD\n" in capsys.readouterr().err


def test_a_mistake_is_one_line_and_writes_nothing(here: Path) -> None:
    for words, kind, message in (
        ([], ConfigError, r"which source\? .* python, text, jsonl"),
        (["pyton"], ConfigError, "did you mean python"),
        (["text", "--pth", "x"], ConfigError, "no flag --pth.*--path"),
        ([*TEXT, "--tokenizer", "gpt3"], ConfigError, "gpt2"),
        ([*TEXT, "--format", "nanogtp"], ConfigError, "did you mean nanogpt"),
        ([*TEXT, "--errors", "ignore"], ConfigError, "invalid errors: 'ignore'; choose one of: strict"),
        ([*TEXT, "--documents=-1"], ConfigError, r"invalid documents: -1 \(must be >= 0\)"),
        ([*TEXT, "--processes=-1"], ConfigError, r"invalid --processes: -1 \(must be >= 0\)"),
        ([*TEXT, "--vocab-size=0"], ConfigError, r"invalid --vocab-size: 0 \(must be >= 1\)"),
        ([*TEXT, "--documents", "many"], ConfigError, "many"),
        (["text", "--path", "nowhere.txt"], DataError, "nowhere.txt: no such file"),
        ([*TEXT, "--tokenizer", "my/tokenizer.json"], DataError, "tokenizer.json"),
    ):
        with pytest.raises(kind, match=message) as caught:
            command.main(words)
        assert "\n" not in str(caught.value)
        assert [path.name for path in here.iterdir()] == ["text.txt"]


def test_text_that_is_not_utf8_has_exit_code_65_and_nothing_needs_torch(here: Path) -> None:
    (here / "bad.txt").write_bytes(b"\xff" * 100)
    script = f"""
import sys
from quillgpt.cli.prepare import main
from quillgpt.cli import main as command
assert not {{"torch", "numpy", "rich"}} & sys.modules.keys()
main({BYTES})
assert "torch" not in sys.modules
sys.argv = ["quill", "prepare", "text", "--tokenizer", "byte", "--path", "bad.txt"]
command.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 65
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("quill: bad.txt")
    config = DataConfig(source="text", path="text.txt", tokenizer="byte")
    assert (here / data_directory(config, 50257) / "manifest.json").exists(), "where `quill train` looks for it"
