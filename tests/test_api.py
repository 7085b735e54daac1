"""`import quillgpt`: the public names, light to import, each with an example that runs as it is printed."""

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
from quillgpt.training.loop import train

NAMES = sorted(quillgpt.PUBLIC)
VOCABULARY = Path(__file__).parents[2] / "shared" / "data" / "tiktoken-cache"


def docstring(name: str) -> str:
    """The docstring of a public name."""
    return inspect.getdoc(getattr(quillgpt, name)) or ""


def example(text: str) -> str:
    """The indented lines of a docstring."""
    lines = text.splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line))


def output_of(code: str) -> list[str]:
    """The lines that the example prints."""
    names: dict[str, Any] = {"quillgpt": quillgpt, "torch": torch, "dataclasses": dataclasses}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "example", "exec"), names)
    return printed.getvalue().splitlines()


def test_every_example_runs_and_prints_what_it_says(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory with a run of the recipe `python`; there every recipe is a tiny one that takes a second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(VOCABULARY))
    tiny = flatten(updated(small_run, {"steps": 4, "eval_every": 4}, where="test"))
    del tiny["out"]
    monkeypatch.setattr(recipes, "read_recipe", lambda name: (tiny, {}))
    train(recipes.recipe_config("python"))
    assert output_of(example(quillgpt.__doc__ or "").replace("steps=50", "steps=5"))
    for name in NAMES:
        code = example(docstring(name))
        assert f"quillgpt.{name}(" in code
        if 'load_tokenizer("gpt2")' in code and not VOCABULARY.is_dir():
            continue
        printed = output_of(code)
        comments = [line.split("  # ")[1] for line in code.splitlines() if line.startswith("print(") and "  # " in line]
        assert [comment for comment in comments if comment not in printed] == [], name


def test_the_public_names_have_docstrings_that_begin_with_a_sentence() -> None:
    expected = {"GPT", "ModelConfig", "RunConfig", "generate", "load_model", "load_recipe", "load_tokenizer", "train"}
    assert set(dir(quillgpt)) == set(NAMES) == {*expected, "optimize_for_inference"}
    assert all(callable(getattr(quillgpt, name)) for name in NAMES)
    assert [name for name in NAMES if not re.match(r"[A-Z].*[.;]", docstring(name).splitlines()[0])] == []
    with pytest.raises(AttributeError, match="no attribute 'tokenise'; it has GPT, ModelConfig, "):
        _ = quillgpt.tokenise


def test_importing_is_light_and_train_can_be_called_whatever_was_imported_before() -> None:
    code = """
import importlib, sys
import quillgpt
quillgpt.load_recipe("debug")
heavy = {"torch", "numpy", "rich", "tyro", "tiktoken"} & set(sys.modules)
assert not heavy, heavy
for before in ("", "quillgpt.training.screen", "quillgpt.training.loop", "quillgpt.training"):
    for name in [name for name in sys.modules if name.partition(".")[0] == "quillgpt"]:
        del sys.modules[name]
    if before:
        importlib.import_module(before)
    import quillgpt
    assert callable(quillgpt.train) and callable(quillgpt.train), before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_mistakes_are_errors_and_ready_tokenizers_load_by_name() -> None:
    with pytest.raises(ConfigError, match="did you mean debug"):
        quillgpt.load_recipe("debgu")
    for name in [name for name, kind in TOKENIZERS.items() if not kind.learns and name != "gpt2"]:
        assert quillgpt.load_tokenizer(name).name == name
