"""The commands of the README and of docs/commands.md work: every line of their shell blocks is run, in order.

Training gets a handful of steps instead of minutes and evaluation a few tokens; a block marked `needs=` (network, GPU)
is run with --dry-run.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import quillgpt
from quillgpt.cli.main import run
from quillgpt.config import updated
from quillgpt.errors import QuillError
from quillgpt.model.attention import ATTENTION, Attention

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS_PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
TIKTOKEN_CACHE = ROOT.parent / "shared" / "data" / "tiktoken-cache"
SHORT = {
    "train": ["--minutes", "0", "--steps", "2", "--eval-tokens", "2000", "--threads", "1"],
    "eval": ["--eval-tokens", "2000"],
    "bench": ["--threads", "1"],
}
SETS_UP = {"make", "python3", ".venv/bin/python", ".venv/bin/quill", "OMP_NUM_THREADS=1"}


def commands() -> Iterator[tuple[str, list[str]]]:
    """What the block of each command line needs, and its words without comments."""
    for needs, body in re.findall(r"```sh(?: needs=(\S+))?\n(.*?)```", README + COMMANDS_PAGE, re.DOTALL):
        for line in body.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] not in SETS_UP:
                yield needs, words


def runnable(words: list[str], needs: str) -> list[str]:
    """The arguments of `quill` as the test runs them: short, or only planned."""
    if words[0] == "torchrun":
        words = words[words.index("quillgpt") :]
    else:
        assert words[0] == "quill", f"the test does not know how to run {words}"
    arguments = words[1:]
    if needs and arguments[0] == "train" and "--dry-run" not in arguments:
        return [*arguments, "--dry-run"]
    return arguments if needs or "--dry-run" in arguments else arguments + SHORT.get(arguments[0], [])


def test_every_command_of_the_readme_and_the_commands_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one test, because a later line uses what an earlier one made."""
    (tmp_path / "my_folder").mkdir()
    for source in sorted((ROOT / "src" / "quillgpt").rglob("*.py")):
        (tmp_path / "my_folder" / ("-".join(source.relative_to(ROOT).parts) + ".txt")).write_bytes(source.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    if TIKTOKEN_CACHE.is_dir():
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_CACHE))
    failures, count = [], 0
    for needs, words in commands():
        if "--tokenizer gpt2" in " ".join(words) and not TIKTOKEN_CACHE.is_dir():
            continue  # GPT-2's vocabulary comes from the network
        arguments = runnable(words, needs)
        if needs and arguments[0] == "sample":
            failures += [] if stops_where_the_network_begins(arguments, tmp_path) else [shlex.join(words)]
            continue
        try:
            code = run(arguments)
        except QuillError as error:
            code = f"{type(error).__name__}: {error}"
        count += 1
        if code:
            failures.append(f"{shlex.join(words)}: {code}\n{capsys.readouterr().err}")
    assert failures == []
    assert count > 30


def stops_where_the_network_begins(arguments: list[str], folder: Path) -> bool:
    """Whether the command is understood, and fails only because it would fetch a model."""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    command = [sys.executable, "-m", "quillgpt", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=offline)
    return result.returncode == 65 and "offline" in result.stderr.lower()


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", COMMANDS_PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    load = quillgpt.load_recipe
    short = {"steps": 3, "out": "runs/debug", "threads": 1, "eval_tokens": 2000}
    monkeypatch.setattr(quillgpt, "load_recipe", lambda name: updated(load(name), short, where="test"))
    exec(compile(example, "docs/commands.md", "exec"), {})
    assert (tmp_path / "runs" / "debug" / "metrics.jsonl").is_file()


def test_the_attention_of_the_readme_is_a_causal_entry_of_the_menu(monkeypatch: pytest.MonkeyPatch) -> None:
    code, line = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    module: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), module)
    entry = eval(f"{{{line}}}", {"Attention": Attention, "cosine": type("cosine", (), module)})
    monkeypatch.setitem(ATTENTION, "cosine", entry["cosine"])
    small = quillgpt.ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=8, vocab_size=11, attention="cosine")
    torch.manual_seed(0)
    model = quillgpt.GPT(small).eval()
    tokens = torch.randint(11, (1, 8))
    logits: Tensor = model(tokens)
    changed = model(torch.cat([tokens[:, :5], (tokens[:, 5:] + 1) % 11], dim=1))
    torch.testing.assert_close(changed[:, :5], logits[:, :5])
    assert not torch.allclose(changed[:, 5:], logits[:, 5:])


def test_the_install_lines_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert ".venv/bin/python -m pip install torch==2.13.0" in README
    assert "torch==2.13.0\n" in (ROOT / "requirements.lock").read_text()
    assert "-m pytest -n 2 --dist worksteal" in README
    assert "-m pytest -n 2 --dist worksteal" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_lock_pins_every_dependency_without_a_local_suffix() -> None:
    pins = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.\-]+==[\w.]+", pin) for pin in pins)
    assert not [pin for pin in pins if pin.startswith(("nvidia", "triton"))]
