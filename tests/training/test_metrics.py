"""metrics.jsonl and the trackers: every number, every token counted, and a disk that is full."""

import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quillgpt.config import RunConfig
from quillgpt.distributed import Ranks
from quillgpt.run_dir import RunDirectory
from quillgpt.training import metrics
from quillgpt.training.loop import train
from quillgpt.training.metrics import Metrics, tracked
from quillgpt.training.state import TrainState
from small_runs import RUNTIME, changed, column, lines_of


def test_a_line_has_every_number_and_all_tokens_are_counted(small_run: RunConfig) -> None:
    started = time.perf_counter()
    train(small_run)
    wall_seconds = time.perf_counter() - started
    lines = lines_of(small_run)
    assert [line["tokens"] for line in lines] == [256 * step for step in range(1, 21)]
    assert {"train_loss", "lr", "grad_norm", "tokens_per_second", "memory_bytes", "elapsed_seconds"} <= lines[0].keys()
    assert lines[0]["mfu"] is None  # a CPU's peak is not known
    assert [line["step"] for line in lines if {"val_loss", "val_loss_stderr", "val_bpb"} <= line.keys()] == [10, 20]
    assert [line["step"] for line in lines if "val_loss" in line] == [10, 20]
    assert not any(isinstance(value, list) for value in lines[0].values())  # softmax has no attention statistics
    seconds = sum(256 / line["tokens_per_second"] for line in lines)
    assert seconds == pytest.approx(lines[-1]["elapsed_seconds"], rel=0.01)
    assert lines[-1]["elapsed_seconds"] < wall_seconds


def test_mfu_is_achieved_flops_over_the_peak_of_all_ranks(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "peak_flops", lambda device, dtype: 1e12)
    layers, width, length = 2, 32, 32
    weights = layers * (12 * width**2 + 13 * width) + 2 * width + 257 * width  # the tied head counts, positions do not
    flops = 6 * weights + 12 * layers * width * length
    step: Any = SimpleNamespace(loss=1.0, lr=0.1, grad_norm=1.0, is_applied=True)
    for world_size in (1, 4):
        parts: Any = SimpleNamespace(runtime=replace(RUNTIME, world_size=world_size), state=TrainState())
        parts.model = SimpleNamespace(config=small_run.model)
        made = Metrics(RunDirectory(tmp_path), small_run, parts, Ranks())
        parts.state.tokens, parts.state.elapsed_seconds = 1000, 2.0
        assert made.line(step, None)["mfu"] == pytest.approx(500 * flops / (world_size * 1e12), rel=1e-3)


def test_a_full_disk_loses_lines_with_one_message_and_stops_nothing(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    monkeypatch.setattr(metrics, "append_metrics", lambda path, line: False)
    assert train(changed(small_run, steps=4)).step == 4
    assert len([message for message in messages if "metrics.jsonl" in message and "disk full?" in message]) == 1


def test_trackers_get_finite_numbers_and_one_for_each_layer() -> None:
    line: dict[str, Any] = {"step": 3, "train_loss": 2.0, "mfu": None, "skipped": True, "val_loss": math.inf}
    line["kernel_x_max"] = [1.5, math.nan, 2.5]
    numbers = {"train_loss": 2.0, "skipped": 1.0, "kernel_x_max/layer_0": 1.5, "kernel_x_max/layer_2": 2.5}
    assert tracked(line) == numbers


def test_only_logged_steps_and_evaluations_have_a_line(small_run: RunConfig) -> None:
    train(changed(small_run, log_every=8, eval_every=6))
    assert column(small_run, "step") == [6, 8, 12, 16, 18, 20]
