"""Compiling changes the speed and nothing else, and a machine where it fails trains without it and says so."""

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
from quillgpt.config import RunConfig, updated
from quillgpt.errors import ConfigError
from quillgpt.run_dir import RunDirectory, config_toml, read_metrics
from quillgpt.train.loop import train
from quillgpt.train.progress import Quiet


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before, nothing left behind."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def changed(config: RunConfig, **settings: Any) -> RunConfig:
    return updated(config, settings, where="test")


def run_of(config: RunConfig) -> RunDirectory:
    return RunDirectory(Path(config.train.out))


def compilations(config: RunConfig) -> int:
    """How many graphs are compiled for a run."""
    counters.clear()
    torch._dynamo.reset()
    train(config)
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_evaluating_and_sampling_beside_a_compiled_model_recompiles_nothing(
    small_run: RunConfig, tmp_path: Path, dropout: float
) -> None:
    compiled = changed(small_run, compile="on", compile_backend="eager", dropout=dropout, steps=4, save_every=0)
    seldom = changed(compiled, eval_every=0, out=str(tmp_path / "seldom"))
    often = changed(compiled, eval_every=1, sample_every=1, out=str(tmp_path / "often"))
    assert compilations(often) == compilations(seldom) == 1


def test_a_last_smaller_micro_batch_is_compiled_once_more(small_run: RunConfig) -> None:
    settings = {"batch_size": 3, "gradient_accumulation_steps": 0, "batch_tokens": 8 * 32, "steps": 4}
    assert compilations(changed(small_run, compile="on", compile_backend="eager", **settings)) == 2


def test_files_and_losses_are_those_of_a_run_without_compiling(small_run: RunConfig, tmp_path: Path) -> None:
    compiled = changed(small_run, compile="on", compile_backend="aot_eager", steps=6, save_every=0, eval_every=0)
    plain = changed(compiled, compile="off", out=str(tmp_path / "plain"))
    tensors = []
    for config in (compiled, plain):
        train(config)
        saved = checkpoint.committed(run_of(config))[-1]
        tensors.append(saved.tensors(checkpoint.MODEL) | saved.tensors(checkpoint.OPTIMIZER))
    assert {name: tensor.shape for name, tensor in tensors[0].items()} == {
        name: tensor.shape for name, tensor in tensors[1].items()
    }
    losses = [[line["loss"] for line in read_metrics(run_of(config).metrics)] for config in (compiled, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_trial_leaves_no_trace_in_the_run(small_run: RunConfig, tmp_path: Path) -> None:
    """Compiling first runs a step on zeros; weights, gradients and random numbers must not feel it.

    Compiled code is given the formulas that eager code has derivatives by hand for, so that the last digits differ.
    """
    compiled = changed(small_run, compile="on", compile_backend="eager", dropout=0.2, steps=4)
    plain = changed(compiled, compile="off", out=str(tmp_path / "plain"))
    for config in (compiled, plain):
        train(config)
    assert [line["loss"] for line in read_metrics(run_of(compiled).metrics)] == pytest.approx(
        [line["loss"] for line in read_metrics(run_of(plain).metrics)], rel=1e-6
    )


@pytest.fixture
def broken_backend() -> Iterator[str]:
    """A backend of torch.compile that fails."""

    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise OSError("no such compiler")

    torch._dynamo.register_backend(broken, name="broken")
    yield "broken"
    registry._BACKENDS.pop("broken")
    registry._COMPILER_FNS.pop("broken")


def test_a_backend_that_fails_is_said_once_and_the_run_goes_on_without(
    small_run: RunConfig, broken_backend: str
) -> None:
    screen, said = Quiet(), []
    screen.say = said.append  # type: ignore[method-assign]
    config = changed(small_run, compile="on", compile_backend=broken_backend, steps=4)
    assert train(config, screen).step == 4
    about = [line for line in said if "compile" in line]
    assert len(about) == 1
    assert "compile: off, because it failed here" in about[0]
    assert "no such compiler" in about[0]
    assert checkpoint.committed(run_of(config))[-1].read_json(checkpoint.RESOLVED)["compile"] is False


def test_a_backend_that_does_not_exist_is_a_usage_error(small_run: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"compile_backend = 'indcutor' .*did you mean inductor\?") as raised:
        train(changed(small_run, compile="on", compile_backend="indcutor"))
    assert raised.value.exit_code == 2
    assert not run_of(small_run).path.exists()


def test_without_a_cpp_compiler_a_run_trains_eager_and_says_so_in_a_line(small_run: RunConfig, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(config_toml(changed(small_run, steps=3, eval_every=0)))
    command = [sys.executable, "-m", "quillgpt", "train", str(recipe), "--compile", "--out", str(tmp_path / "run")]
    variables = {name: value for name, value in os.environ.items() if name not in ("CXX", "CC")}
    variables |= {"PATH": "", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    ended = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"compile: off, because it failed here: .*[Cc]ompiler", ended.stdout)
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.stdout.count("compile:") == 1
    assert "held out:" in ended.stdout
