"""A variant is one new file and one line in its menu: an attention, an MLP, an optimizer, a text source and a task."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from task_files import write_tasks

ROOT = Path(__file__).parents[1]
FILES = {
    "model/attention/dummy.py": '''
"""The mean of the earlier values."""

import torch
from torch import Tensor


def dummy_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    new, total = query.shape[2], key.shape[2]
    counts = torch.arange(total - new + 1, total + 1, device=value.device, dtype=value.dtype)
    return value.cumsum(2)[:, :, total - new :] / counts[:, None]
''',
    "model/dummy_mlp.py": '''
"""One matrix."""

from torch import Tensor, nn

from quillgpt.config import ModelConfig


class DummyMLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).tanh()
''',
    "optim/dummy.py": '''
"""Adagrad."""

import torch


def build(parameters, settings):
    return torch.optim.Adagrad([parameter for _, parameter in parameters], lr=settings.lr)
''',
    "data/sources/dummy.py": '''
"""Counts to a hundred, again and again."""

from quillgpt.data.sources.text import Text


class Dummy(Text):
    licence = "none"

    def __init__(self, config):
        pass

    def documents(self, stats):
        for number in range(300):
            yield iter([f"{number}: ", " ".join(map(str, range(number % 7, 100, 1 + number % 3)))])

    def text_bytes(self):
        return 60_000
''',
    "evaluate/tasks/dummy.py": '''
"""Which of two endings is shorter."""

from dataclasses import replace

from quillgpt.evaluate.tasks.hellaswag import HELLASWAG_COMPLETION
from quillgpt.evaluate.tasks.task import Candidate, Item


def item(record):
    endings = sorted(record.texts("endings"), key=len)[:2]
    candidates = [Candidate(context="1 2 3", continuation=ending, characters=len(ending)) for ending in endings]
    return Item(key=record.key, candidates=tuple(candidates), right=0)


DUMMY = replace(HELLASWAG_COMPLETION, name="dummy", item=item, published={}, harness_name="")
''',
}
MENUS = {
    "model/attention/__init__.py": ("ATTENTION", '"dummy": Attention(function=dummy.dummy_attention),'),
    "model/mlp.py": ("MLPS", '"dummy": MLPEntry(build=dummy_mlp.DummyMLP),'),
    "optim/__init__.py": ("OPTIMIZERS", '"dummy": dummy.build,'),
    "data/sources/__init__.py": ("SOURCES", '"dummy": dummy.Dummy,'),
    "evaluate/tasks/__init__.py": ("TASKS", "dummy.DUMMY, "),
}
"""the menu's file, its name, and the entry; the name of the module in it needs its import"""
RECIPE = """
attention = "dummy"
mlp = "dummy"
optimizer = "dummy"
source = "dummy"
tokenizer = "byte"
eval_tasks = "dummy:4"
task_data = "questions"
n_layer = 2
n_head = 2
n_embd = 16
context_length = 64
batch_size = 4
lr = 0.01
eval_every = 2
save_every = 2
eval_tokens = 500
log_every = 1
out = "runs/dummy"
device = "cpu"
dtype = "fp32"
threads = 1
compile = "off"
"""
COMMANDS = """
from quillgpt.cli.main import run
for line in (
    "train dummy.toml --steps 6",
    "eval runs/dummy --tasks loss,dummy --data-dir questions --device cpu",
    "sample runs/dummy -p 1 -m 5 --device cpu",
    "report runs/dummy --text",
):
    print(f"=== {line}", flush=True)
    assert run(line.split()) == 0
"""


def add_variants(package: Path) -> None:
    """Write the new files, and add a line for each in its menu."""
    for name, text in FILES.items():
        (package / name).write_text(text.lstrip())
    for (name, (menu, entry)), new in zip(MENUS.items(), FILES, strict=True):
        path = package / name
        text = path.read_text()
        folder, module = f"quillgpt.{new.removesuffix('.py').replace('/', '.')}".rsplit(".", 1)
        start = re.search(rf"^{menu}\b.*\{{$(\n +task.name: task\n +for task in \()?", text, re.MULTILINE)
        assert start is not None, f"{name} has no menu {menu}"
        line = entry if start[1] else f"\n    {entry}"
        first_import = re.search(r"^(?:from|import) ", text, re.MULTILINE)
        assert first_import is not None
        before, after = text[first_import.start() : start.end()], text[start.end() :]
        path.write_text(f"{text[: first_import.start()]}from {folder} import {module}\n{before}{line}{after}")


def test_a_variant_of_every_menu_is_one_file_and_one_line(tmp_path: Path) -> None:
    """With them, `quill` trains, resumes, evaluates, samples and reports."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "src" / "quillgpt"
    before = {path: path.read_text() for path in package.rglob("*.py")}
    add_variants(package)
    changed = {str(path.relative_to(package)): path for path, text in before.items() if path.read_text() != text}
    assert changed.keys() == MENUS.keys()
    assert all(len(path.read_text().splitlines()) - len(before[path].splitlines()) <= 2 for path in changed.values())
    write_tasks(tmp_path / "questions", "hellaswag")
    (tmp_path / "dummy.toml").write_text(RECIPE)

    def python(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    assert "val loss: " in python("-m", "quillgpt", "train", "dummy.toml", "--steps", "4")
    resumed, evaluated, sampled, reported = python("-c", COMMANDS).split("=== ")[1:]
    assert "from step 4" in resumed
    assert "dummy" in evaluated
    assert "1" in sampled
    assert "dummy" in reported
    lines = [json.loads(line) for line in (tmp_path / "runs" / "dummy" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert [name for name in lines[-1] if name.startswith("dummy_")]
