"""Continuing a run: bit for bit on a CPU, from the newest intact checkpoint, and never with another model or data."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.config import RunConfig, updated
from quillgpt.errors import CheckpointError, LockedError
from quillgpt.run_dir import RunDirectory, config_toml, read_metrics
from quillgpt.train.loop import train

RUN_AND_KILL = """
import os, signal, sys
from quillgpt.config import RunConfig, updated
from quillgpt.recipes import read_toml
from quillgpt.train import loop
from pathlib import Path

config = updated(RunConfig(), read_toml(Path(sys.argv[1])) | {"out": sys.argv[2]}, where="test")
kill_at, how = int(sys.argv[3]), getattr(signal, sys.argv[4])
forward_backward, seen = loop.gradients, []

def gradients_then_kill(*args, **kwargs):
    result = forward_backward(*args, **kwargs)
    if kwargs["step"] == kill_at and not seen:
        seen.append(True)
        os.kill(os.getpid(), how)
    return result

loop.gradients = gradients_then_kill
from quillgpt.errors import QuillError
try:
    loop.train(config)
except QuillError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def killed_at(config: RunConfig, step: int, how: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run in another process that gets a signal in the middle of a step."""
    recipe = folder / "recipe.toml"
    recipe.write_text(config_toml(config))
    command = [sys.executable, "-c", RUN_AND_KILL, str(recipe), config.train.out, str(step), how]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def trajectory(run: str) -> list[tuple[int, str, str]]:
    """(step, loss, gradient norm) of every line of the metrics, as exact hexadecimal floats."""
    lines = read_metrics(RunDirectory(Path(run)).metrics)
    return [(line["step"], float(line["loss"]).hex(), float(line["gradient_norm"]).hex()) for line in lines]


def final_tensors(run: str) -> dict[str, torch.Tensor]:
    last = checkpoint.committed(RunDirectory(Path(run)))[-1]
    weights = checkpoint.ADAPTER if last.adapter else checkpoint.MODEL
    return last.tensors(weights) | last.tensors(checkpoint.OPTIMIZER)


def assert_same_run(left: str, right: str) -> None:
    assert trajectory(left) == trajectory(right)
    ours, theirs = final_tensors(left), final_tensors(right)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


VARIANTS = {
    "eager fp32": {},
    "eager bf16 with dropout": {"dtype": "bf16", "dropout": 0.2},
    "compiled": {"compile": "on", "dropout": 0.1, "steps": 200, "save_every": 100, "eval_every": 50},
    "LoRA with dropout": {"init": "base", "lora_rank": 4, "dropout": 0.1},
    "200 steps": {"steps": 200, "save_every": 100, "eval_every": 50, "dropout": 0.1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_kill_and_resume_is_bitwise_the_same_run(small_run: RunConfig, tmp_path: Path, variant: str) -> None:
    config = updated(small_run, VARIANTS[variant], where="test")
    if config.train.init == "base":
        base = train(updated(small_run, {"out": str(tmp_path / "base"), "steps": 5}, where="test"))
        config = updated(config, {"init": str(base.run)}, where="test")
    whole = updated(config, {"out": str(tmp_path / "whole")}, where="test")
    train(whole)
    half = config.train.steps // 2
    assert killed_at(config, half + 3, "SIGKILL", tmp_path).returncode == -signal.SIGKILL
    assert trajectory(config.train.out)[-1][0] >= half
    train(config)
    assert_same_run(config.train.out, whole.train.out)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGHUP", 75), ("SIGINT", 130)])
def test_a_signal_saves_the_finished_step_and_the_run_continues_from_it(
    small_run: RunConfig, tmp_path: Path, name: str, code: int
) -> None:
    ended = killed_at(small_run, 6, name, tmp_path)
    assert ended.returncode == code, ended.stderr
    assert "run the same command again" in ended.stdout
    assert checkpoint.committed(RunDirectory(Path(small_run.train.out)))[-1].step == 7
    train(small_run)
    whole = updated(small_run, {"out": str(tmp_path / "whole")}, where="test")
    train(whole)
    assert_same_run(small_run.train.out, whole.train.out)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, delete])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json"])
def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_is_used(
    small_run: RunConfig, tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    train(small_run)
    run = RunDirectory(Path(small_run.train.out))
    newest = checkpoint.committed(run)[-1]
    damage(newest.path / name)
    said: list[str] = []
    found = checkpoint.newest_intact(run, said.append)
    assert found is not None
    assert found.step == 10
    assert str(newest.path / name) in said[0]
    assert "before it" in said[0]


@pytest.mark.parametrize("seed", range(20))
def test_every_flipped_bit_is_detected(
    small_run: RunConfig, prepared: Path, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    found = saved_once(small_run, tmp_path_factory)
    generator = torch.Generator().manual_seed(seed)
    for name in found.manifest["files"]:
        content = (found.path / name).read_bytes()
        changed = bytearray(content)
        bit = int(torch.randint(8 * len(content), (1,), generator=generator))
        changed[bit // 8] ^= 1 << (bit % 8)
        (found.path / name).write_bytes(changed)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.verify(found)
        (found.path / name).write_bytes(content)
    checkpoint.verify(found)


SAVED: list[checkpoint.Checkpoint] = []


def saved_once(config: RunConfig, factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    """One checkpoint for all seeds."""
    if not SAVED:
        config = updated(config, {"out": str(factory.mktemp("saved") / "run"), "steps": 2}, where="test")
        train(config)
        SAVED.append(checkpoint.committed(RunDirectory(Path(config.train.out)))[-1])
    return SAVED[0]


@pytest.mark.parametrize(("name", "value"), [("n_layer", 3), ("n_embd", 64), ("bias", False), ("seed", 7)])
def test_another_model_or_order_is_refused_with_the_difference(small_run: RunConfig, name: str, value: object) -> None:
    train(updated(small_run, {"steps": 2}, where="test"))
    with pytest.raises(CheckpointError, match=f"{name} .* -> {value}"):
        train(updated(small_run, {"steps": 2, name: value}, where="test"))


def test_other_data_under_the_same_settings_is_refused(small_run: RunConfig, tmp_path: Path) -> None:
    train(updated(small_run, {"steps": 2}, where="test"))
    found = checkpoint.committed(RunDirectory(Path(small_run.train.out)))[-1]
    manifest = json.loads((found.path / "manifest.json").read_text())
    (found.path / "manifest.json").write_text(json.dumps(manifest | {"data": "0" * 64}))
    with pytest.raises(CheckpointError, match="not what this run was trained on"):
        train(small_run)


def test_a_changed_rate_is_logged_and_used(small_run: RunConfig) -> None:
    train(updated(small_run, {"steps": 10}, where="test"))
    said: list[str] = []

    from quillgpt.train.progress import Quiet

    screen = Quiet()
    screen.say = said.append  # type: ignore[method-assign]
    train(updated(small_run, {"lr": 1e-3}, where="test"), screen)
    assert any("lr 0.003 -> 0.001" in line for line in said)
    assert any("steps 10 -> 20" in line for line in said)


def test_a_changed_batch_size_continues_without_gap_or_repeat(small_run: RunConfig) -> None:
    train(updated(small_run, {"steps": 10}, where="test"))
    train(updated(small_run, {"gradient_accumulation_steps": 4}, where="test"))
    state = checkpoint.committed(RunDirectory(Path(small_run.train.out)))[-1].read_json("state.json")
    assert state["row_changes"] == [[10, 16]]
    assert state["tokens"] == 10 * 8 * 32 + 10 * 16 * 32


def test_a_finished_run_says_so_and_changes_nothing(small_run: RunConfig) -> None:
    outcome = train(small_run)
    before = {path: path.read_bytes() for path in outcome.run.rglob("*.safetensors")}
    again = train(small_run)
    assert again.step == 20
    assert again.held_out == outcome.held_out
    assert {path: path.read_bytes() for path in outcome.run.rglob("*.safetensors")} == before


def test_fresh_refuses_a_directory_that_holds_a_run(small_run: RunConfig) -> None:
    train(updated(small_run, {"steps": 2}, where="test"))
    with pytest.raises(CheckpointError, match="already holds a run at step 2"):
        train(updated(small_run, {"fresh": True}, where="test"))


def test_a_second_run_in_the_same_directory_is_refused_by_name(small_run: RunConfig) -> None:
    from quillgpt import files

    folder = Path(small_run.train.out)
    folder.mkdir()
    with files.locked(folder), pytest.raises(LockedError, match=f"process {os.getpid()} on "):
        train(small_run)


def test_metrics_have_every_step_once_after_a_resume(small_run: RunConfig, tmp_path: Path) -> None:
    killed_at(small_run, 17, "SIGKILL", tmp_path)
    train(small_run)
    assert [step for step, _, _ in trajectory(small_run.train.out)] == list(range(1, 21))


def test_a_saved_config_is_a_recipe_that_repeats_the_run(small_run: RunConfig, tmp_path: Path) -> None:
    from quillgpt.recipes import load_recipe

    outcome = train(small_run)
    again = load_recipe(str(outcome.run / "config.toml"))
    assert again == replace(small_run, train=replace(small_run.train, out="runs/run-again"))
    train(updated(again, {"out": str(tmp_path / "again")}, where="test"))
    assert_same_run(small_run.train.out, str(tmp_path / "again"))
