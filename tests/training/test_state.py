"""Resuming a run: bit for bit on a CPU, and never with another model or other data."""

import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quillgpt import files
from quillgpt.config import RunConfig
from quillgpt.errors import CheckpointError, Interrupted, LockedError, Stopped
from quillgpt.recipes import recipe_config
from quillgpt.training import loop
from quillgpt.training.loop import train
from quillgpt.training.state import TrainState, restored_runtime
from small_runs import RUNTIME, assert_same_run, changed, column, killed_in_step, newest, reseal, run_of

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16 with dropout": {"dtype": "bf16", "dropout": 0.2},
    "LoRA with dropout": {"init": "base", "lora_rank": 4, "dropout": 0.1},
    "200 steps": {"steps": 200, "save_every": 100, "eval_every": 50, "dropout": 0.1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_and_resumed_run_is_bitwise_the_uninterrupted_run(
    small_run: RunConfig, tmp_path: Path, variant: str
) -> None:
    config = changed(small_run, **VARIANTS[variant])
    if config.train.init == "base":
        base = train(changed(small_run, out=str(tmp_path / "base"), steps=5))
        config = changed(config, init=str(base.run))
    uninterrupted = changed(config, out=str(tmp_path / "uninterrupted"))
    train(uninterrupted)
    half = config.train.steps // 2
    killed_in_step(config, half + 3)
    assert column(config, "step") == list(range(1, half + 4))  # beyond the checkpoint at half of the steps
    train(config)
    assert column(config, "step") == list(range(1, config.train.steps + 1))
    assert_same_run(config, uninterrupted)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_run_is_bitwise_resumed(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(small_run, compile="on", dropout=0.1, steps=40, save_every=20, eval_every=10)
    uninterrupted = changed(config, out=str(tmp_path / "uninterrupted"))
    train(uninterrupted)
    torch._dynamo.reset()
    with monkeypatch.context() as patch:
        signal_in_step(patch, 22, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(config)
    torch._dynamo.reset()
    train(config)
    assert_same_run(config, uninterrupted)


def signal_in_step(patch: pytest.MonkeyPatch, step: int, signal_or_error: signal.Signals | BaseException) -> None:
    """Let a signal arrive, or an error be raised, after the backward pass of a step."""
    real = loop.gradients

    def gradients(*arguments: Any, **numbers: Any) -> torch.Tensor:
        loss_sum = real(*arguments, **numbers)
        if numbers["step"] == step:
            if isinstance(signal_or_error, BaseException):
                raise signal_or_error
            os.kill(os.getpid(), signal_or_error)
        return loss_sum

    patch.setattr(loop, "gradients", gradients)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"])
def test_a_signal_saves_the_finished_step_and_the_run_continues_from_it(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    error = Interrupted if name == "SIGINT" else Stopped
    with monkeypatch.context() as patch:
        signal_in_step(patch, 6, signal.Signals[name])
        with pytest.raises(error, match=r"after step 7, .*run the same command again") as raised:
            train(small_run)
    assert raised.value.exit_code == (130 if name == "SIGINT" else 75)
    assert newest(small_run).step == 7
    train(small_run)
    uninterrupted = changed(small_run, out=str(tmp_path / "uninterrupted"))
    train(uninterrupted)
    assert_same_run(small_run, uninterrupted)


def test_another_model_seed_or_data_is_refused_with_the_difference(small_run: RunConfig) -> None:
    first = changed(small_run, steps=2)
    train(first)
    for name, value in {"n_layer": 3, "n_embd": 64, "bias": False, "seed": 7}.items():
        with pytest.raises(CheckpointError, match=f"{name} .* -> {value}"):
            train(changed(first, **{name: value}))
    reseal(newest(first).path / "manifest.json", lambda manifest: manifest.update(data="0" * 64))
    with pytest.raises(CheckpointError, match=r"data .* this run was trained on .*was 000000000000"):
        train(small_run)


def test_a_changed_rate_is_reported_and_used(small_run: RunConfig, messages: list[str]) -> None:
    first = changed(small_run, schedule="constant", steps=10)
    train(first)
    train(changed(first, lr=1e-3, steps=20))
    for change in ("lr 0.003 -> 0.001", "steps 10 -> 20"):
        assert any(change in message for message in messages), change
    assert column(first, "lr")[9:11] == [3e-3, 1e-3]


def test_a_changed_batch_size_continues_without_gap_or_repeat(small_run: RunConfig) -> None:
    train(changed(small_run, steps=10))
    train(changed(small_run, gradient_accumulation_steps=4))
    state = newest(small_run).read_json("state.json")
    assert state["global_batch_size_changes"] == [[10, 16]]
    assert state["tokens"] == 10 * 8 * 32 + 10 * 16 * 32


def test_a_finished_run_says_so_and_changes_nothing(small_run: RunConfig, messages: list[str]) -> None:
    outcome = train(small_run)
    before = {path: path.read_bytes() for path in outcome.run.rglob("*.safetensors")}
    again = train(small_run)
    assert (again.step, again.validation) == (20, outcome.validation)
    assert {path: path.read_bytes() for path in outcome.run.rglob("*.safetensors")} == before
    assert "20 of 20 steps; raise --steps to continue" in messages[-1]


def test_fresh_refuses_a_directory_that_holds_a_run(small_run: RunConfig) -> None:
    train(changed(small_run, steps=2))
    with pytest.raises(CheckpointError, match="already holds a run at step 2"):
        train(changed(small_run, fresh=True))


def test_a_second_run_in_the_same_directory_is_refused(small_run: RunConfig) -> None:
    folder = run_of(small_run).path
    folder.mkdir()
    with files.locked(folder), pytest.raises(LockedError, match=f"process {os.getpid()} on "):
        train(small_run)


def test_a_saved_config_is_a_recipe_that_repeats_the_run(small_run: RunConfig, tmp_path: Path) -> None:
    outcome = train(small_run)
    again = recipe_config(str(outcome.run / "config.toml"))
    assert again == replace(small_run, train=replace(small_run.train, out="runs/run-again"))
    again = changed(again, out=str(tmp_path / "again"))
    train(again)
    assert_same_run(small_run, again)


def test_what_another_machine_resumes_with_its_own_values(messages: list[str]) -> None:
    saved = replace(RUNTIME, threads=5, dtype="bf16", micro_batch_size=3, global_batch_size=12, steps=7)
    here = replace(RUNTIME, threads=2, micro_batch_size=1)
    checkpoint: Any = type("Saved", (), {"path": Path("step"), "read_json": lambda *_: vars(saved)})()
    cases = {
        "same": (here, ("bf16", 5, 3)),
        "ranks were 1, are 4": (replace(here, world_size=4), ("bf16", 2, 1)),
        "device was cpu, is cuda:0": (replace(here, device="cuda:0"), ("fp32", 2, 1)),
    }
    for message, (runtime, expected) in cases.items():
        messages.clear()
        found = restored_runtime(checkpoint, runtime, {})
        assert (found.dtype, found.threads, found.micro_batch_size) == expected, message
        assert (found.device, found.global_batch_size, found.steps) == (runtime.device, 12, 7)
        assert messages == ([] if message == "same" else [f"continuing, not bit-identical: {message}"])
    assert restored_runtime(checkpoint, here, {"dtype": ("bf16", "fp32")}).dtype == "fp32"


def test_the_mean_loss_is_that_of_all_steps_since_the_previous_line(small_run: RunConfig, tmp_path: Path) -> None:
    """Also when the run is resumed between two lines; a non-finite loss is left out."""
    pairs = changed(small_run, log_every=2, eval_every=0, save_every=5, keep_last=9)
    train(pairs)
    every_step = changed(pairs, log_every=1, out=str(tmp_path / "every-step"))
    train(every_step)
    single = column(every_step, "train_loss")
    means = [sum(single[first : first + 2]) / 2 for first in range(0, 20, 2)]
    assert column(every_step, "train_loss_mean") == single
    assert column(pairs, "train_loss_mean") == means
    for step in (10, 15, 20):
        shutil.rmtree(run_of(pairs).checkpoints / f"step-{step:06d}")
    train(pairs)  # from step 5, whose loss is in no line yet
    assert column(pairs, "train_loss_mean") == means
    state = TrainState()
    for loss in (1.0, math.nan, 3.0):
        state.add_loss(loss)
    assert state.train_loss_mean == 2.0
