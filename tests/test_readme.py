"""The README's commands work as they stand: every line of its shell blocks is run, in order, in an empty folder.

Training gets a handful of steps instead of minutes and evaluation a few tokens; a block marked `needs=` (network, GPU)
is run with --dry-run.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = {
    "train": ["--minutes", "0", "--steps", "2", "--eval-tokens", "2000", "--threads", "1"],
    "eval": ["--eval-tokens", "2000"],
}
ENVIRONMENT = {"make", "python3", ".venv/bin/python", ".venv/bin/quill", "OMP_NUM_THREADS=1"}


def blocks() -> Iterator[tuple[str, list[str]]]:
    """The shell blocks: what they need, and their command lines without comments."""
    for needs, body in re.findall(r"```sh(?: needs=(\S+))?\n(.*?)```", README, re.DOTALL):
        words = [shlex.split(line, comments=True) for line in body.splitlines()]
        yield needs, [shlex.join(line) for line in words if line]


COMMANDS = [(needs, command) for needs, lines in blocks() for command in lines]


def runnable(command: str, needs: str) -> list[str] | None:
    """The command as the test runs it: with this interpreter, and short; None for those that set up the environment."""
    words = shlex.split(command)
    if words[0] in ENVIRONMENT:
        return None
    if words[0] == "torchrun":
        words = ["quill", *words[words.index("quillgpt") + 1 :]]
    assert words[0] == "quill", f"the test does not know how to run {command!r}"
    quill = [sys.executable, "-m", "quillgpt", *words[1:]]
    if needs and words[1] == "sample":
        return quill
    if needs or "--dry-run" in words:
        return [*quill, "--dry-run"] if "--dry-run" not in words else quill
    return quill + SHORT.get(words[1], [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder but for the reader's own text."""
    place = tmp_path_factory.mktemp("reader")
    (place / "my_folder").mkdir()
    for source in sorted((ROOT / "src" / "quillgpt").rglob("*.py")):
        (place / "my_folder" / ("-".join(source.relative_to(ROOT).parts) + ".txt")).write_bytes(source.read_bytes())
    return place


def test_every_command_of_the_readme_runs(folder: Path) -> None:
    """In one test, because a later line uses what an earlier one made."""
    ran = 0
    for needs, command in COMMANDS:
        words = runnable(command, needs)
        if words is None:
            continue
        if "gpt2" in words and not (ROOT.parent / "shared" / "data" / "tiktoken-cache").is_dir():
            continue  # GPT-2's vocabulary comes from the network
        result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, env=environment(folder))
        if needs and "sample" in words:  # understood, and stopped where the network would begin
            assert "offline" in result.stderr.lower(), f"{command}\n{result.stderr}"
            continue
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        ran += 1
    assert ran >= 12


def environment(folder: Path) -> dict[str, str]:
    import os

    cache = ROOT.parent / "shared" / "data" / "tiktoken-cache"
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        **({"TIKTOKEN_CACHE_DIR": str(cache)} if cache.is_dir() else {}),
    }


def test_the_python_block_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code) == 1
    short = code[0].replace('load_recipe("debug")', 'load_recipe("debug")\nconfig = short(config)')
    setup = (
        "from quillgpt.config import updated\n"
        "def short(config): return updated(config, {'steps': 3, 'out': 'runs/debug', 'threads': 1}, where='test')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", setup + short], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


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
