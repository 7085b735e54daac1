"""`import quillgpt`: the public names, light to import, each with an example that runs as it stands."""

import contextlib
import dataclasses
import inspect
import io
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import quillgpt
from quillgpt import recipes
from quillgpt.config import RunConfig, flatten, updated
from quillgpt.errors import ConfigError
from quillgpt.tokenizer import TOKENIZERS
from quillgpt.train.loop import train

NAMES = ["GPT", "ModelConfig", "RunConfig", "generate", "load_model", "load_recipe", "load_tokenizer", "prepared"]
NAMES.append("train")  # the folder
VOCABULARY = Path(__file__).parents[2] / "shared" / "data" / "tiktoken-cache"


def docstring(name: str) -> str:
    """The docstring of a public name; of `train`, that of the function behind the folder."""
    return inspect.getdoc(train if name == "train" else getattr(quillgpt, name)) or ""


def example(text: str) -> str:
    """The indented lines of a docstring."""
    lines = text.splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line))


def promised(code: str) -> list[str]:
    """The comments behind the `print` of an example: what it prints."""
    return [line.split("  # ")[1] for line in code.splitlines() if line.startswith("print(") and "  # " in line]


@pytest.fixture
def folder(small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a run of the recipe `python`; there every recipe is a tiny one that takes a second."""
    monkeypatch.chdir(tmp_path)
    tiny = flatten(updated(small_run, {"steps": 4, "eval_every": 4}, where="test"))
    del tiny["out"]
    monkeypatch.setattr(recipes, "read_recipe", lambda name: (tiny, {}))
    train(recipes.load_recipe("python"))
    return tmp_path


def run_example(code: str) -> str:
    """What the example prints."""
    names: dict[str, Any] = {"quillgpt": quillgpt, "torch": torch, "dataclasses": dataclasses}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "example", "exec"), names)
    return printed.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_every_public_name_runs_and_prints_what_it_says(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = example(docstring(name))
    assert f"quillgpt.{name}(" in code
    if 'load_tokenizer("gpt2")' in code:
        if not VOCABULARY.is_dir():
            pytest.skip("GPT-2's vocabulary is not on this machine")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(VOCABULARY))
    printed = run_example(code).splitlines()
    assert [line for line in promised(code) if line not in printed] == []


def test_the_example_of_the_package_runs(folder: Path) -> None:
    assert run_example(example(quillgpt.__doc__ or "").replace("steps=50", "steps=5")).strip()


def test_the_public_names_are_these() -> None:
    assert dir(quillgpt) == NAMES
    assert all(callable(getattr(quillgpt, name)) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_begins_with_one_sentence(name: str) -> None:
    first = docstring(name).splitlines()[0]
    assert re.match(r"[A-Z].*[.;]", first)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tokenise'; it has GPT, ModelConfig, "):
        _ = quillgpt.tokenise


def in_a_new_process(code: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_importing_the_package_is_light() -> None:
    loaded = in_a_new_process("import sys, quillgpt; quillgpt.load_recipe('debug'); print(*sys.modules)").split()
    assert "quillgpt" in loaded
    assert not {"torch", "numpy", "rich", "tyro", "tiktoken"} & set(loaded)


@pytest.mark.parametrize(
    "before", ["", "quillgpt.train", "import quillgpt.train.progress", "from quillgpt.train import loop"]
)
def test_train_can_be_called_whatever_was_imported_before(before: str) -> None:
    code = f"import quillgpt\n{before}\nprint(callable(quillgpt.train), callable(quillgpt.train))"
    assert in_a_new_process(code) == "True True\n"


def test_a_name_that_is_no_recipe_is_an_error_from_python_too() -> None:
    with pytest.raises(ConfigError, match="did you mean debug"):
        quillgpt.load_recipe("debgu")


@pytest.mark.parametrize("name", [name for name, kind in TOKENIZERS.items() if not kind.learns and name != "gpt2"])
def test_every_ready_made_tokenizer_loads_by_its_name(name: str) -> None:
    assert quillgpt.load_tokenizer(name).name == name
