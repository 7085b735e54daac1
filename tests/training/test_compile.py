"""Compiling changes the speed and nothing else, and where it fails a run trains without it and says so."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._dynamo.backends import registry
from torch._dynamo.utils import counters

from quillgpt import checkpoint
from quillgpt.config import RunConfig
from quillgpt.run_dir import config_toml
from quillgpt.training.loop import train
from small_runs import changed, column, newest, tensors_of

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def compilations(config: RunConfig) -> int:
    """The number of graphs that are compiled for a run."""
    counters.clear()
    torch._dynamo.reset()
    train(config)
    return counters["stats"]["unique_graphs"]


@pytest.fixture
def compiled(small_run: RunConfig) -> RunConfig:
    """Four steps in dynamo's graphs, which torch then runs as they are."""
    return changed(small_run, compile="on", compile_backend="eager", steps=4, save_every=0)


def test_evaluating_and_sampling_a_compiled_model_recompiles_nothing(compiled: RunConfig, tmp_path: Path) -> None:
    for dropout in (0.0, 0.1):
        seldom = changed(compiled, dropout=dropout, eval_every=0, out=str(tmp_path / f"seldom-{dropout}"))
        often = changed(seldom, eval_every=1, sample_every=1, out=str(tmp_path / f"often-{dropout}"))
        assert compilations(often) == compilations(seldom) == 1, dropout


def test_a_smaller_last_micro_batch_is_compiled_once_more(compiled: RunConfig) -> None:
    settings = {"batch_size": 3, "gradient_accumulation_steps": 0, "batch_tokens": 8 * 32}
    assert compilations(changed(compiled, **settings)) == 2


def test_the_trial_leaves_no_trace_and_files_and_losses_are_those_of_an_eager_run(
    compiled: RunConfig, tmp_path: Path
) -> None:
    """Compiling first runs a step on zeros; weights, gradients and random numbers must not change by it.

    The compiler gets plain formulas where eager code has custom derivatives, so the last digits of losses differ.
    """
    for settings, tolerance in (({"dropout": 0.2}, 1e-6), ({"compile_backend": "aot_eager", "steps": 6}, 1e-5)):
        backend = settings.get("compile_backend", "eager")
        ours = changed(compiled, **settings, out=str(tmp_path / f"{backend}-compiled"))
        eager = changed(ours, compile="off", out=str(tmp_path / f"{backend}-plain"))
        train(ours)
        train(eager)
        assert column(ours, "train_loss") == pytest.approx(column(eager, "train_loss"), rel=tolerance), backend
        shapes = [{name: tensor.shape for name, tensor in tensors_of(run).items()} for run in (ours, eager)]
        assert shapes[0] == shapes[1]


@pytest.fixture
def broken_backend() -> Iterator[str]:
    """A backend of torch.compile that fails."""

    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise OSError("no such compiler")

    torch._dynamo.register_backend(broken, name="broken")
    yield "broken"
    registry._BACKENDS.pop("broken")
    registry._COMPILER_FNS.pop("broken")


def test_a_backend_that_fails_is_reported_once_and_the_run_continues_eager(
    compiled: RunConfig, broken_backend: str, messages: list[str]
) -> None:
    config = changed(compiled, compile_backend=broken_backend)
    assert train(config).step == 4
    (message,) = (message for message in messages if "compile" in message)
    assert "compile: off" in message
    assert "no such compiler" in message
    assert newest(config).read_json(checkpoint.RUNTIME)["compile"] is False


def test_without_a_cpp_compiler_a_run_trains_eager_and_says_so_in_a_line(small_run: RunConfig, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(config_toml(changed(small_run, steps=3, eval_every=0)))
    command = [sys.executable, "-m", "quillgpt", "train", str(recipe), "--compile", "--out", str(tmp_path / "run")]
    variables: dict[str, Any] = {name: value for name, value in os.environ.items() if name not in ("CXX", "CC")}
    variables |= {"PATH": "", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    ended = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)
    assert ended.returncode == 0, ended.stderr
    output = ended.stdout + ended.stderr
    assert re.search(r"compile: off.*: .*[Cc]ompiler", output)
    assert output.count("compile:") == 1
    assert "Traceback" not in output
    assert "val loss:" in output
