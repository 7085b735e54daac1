"""Runs that are broken on purpose: the doctor names the cause first. Runs that are not: it finds nothing."""

import contextlib
import copy
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_recipe import settings
from torch import Tensor

from quillgpt.config import DataConfig
from quillgpt.data.held_out import HeldOutWindows
from quillgpt.data.loader import BatchLoader
from quillgpt.data.prepare import prepare
from quillgpt.distributed import Ranks
from quillgpt.doctor import Diagnosis, diagnose
from quillgpt.doctor.causes import CAUSES
from quillgpt.evaluate import held_out_loss
from quillgpt.evaluate.bands import Band, shipped_bands
from quillgpt.evaluate.held_out_loss import HeldOutLoss, evaluate_held_out
from quillgpt.model.gpt import GPT
from quillgpt.recipes import load_recipe
from quillgpt.train.loop import train
from quillgpt.train.open_data import open_data
from quillgpt.train.progress import Quiet

Batch = tuple[Tensor, Tensor]
GIVEN = BatchLoader.batch


def first_batch(loader: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """The fault: every step sees the same rows."""
    return GIVEN(loader, 0, rank, world_size)


def one_later(loader: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """The fault: the target of a position is not the next token but the one after it."""
    inputs, targets = GIVEN(loader, step, rank, world_size)
    return inputs, targets.roll(-1, dims=1)


def one_earlier(loader: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """The fault: the target of a position is its own token."""
    inputs, _ = GIVEN(loader, step, rank, world_size)
    return inputs, inputs.clone()


def in_order(loader: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """The fault: rows as they lie in the files."""
    length, rows = loader._context_length, loader._schedule.rows_at(step)
    tokens = np.concatenate([np.asarray(shard) for shard in loader._tokens]).astype(np.int64)
    begin = loader._schedule.position(step)
    window = torch.from_numpy(tokens[begin : begin + rows * length + 1])
    return window[:-1].view(rows, length), window[1:].view(rows, length)


def with_dropout(model: GPT, *arguments: Any, **more: Any) -> HeldOutLoss:
    """The fault: an evaluation that leaves the model in training mode."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out_loss, "evaluation_mode", lambda model: contextlib.nullcontext())
        return evaluate_held_out(model, *arguments, **more)


def in_other_tokens(model: GPT, windows: HeldOutWindows, *arguments: Any, **more: Any) -> HeldOutLoss:
    """The fault: held-out text in the tokens of another vocabulary, here the same bytes under other numbers."""
    shards = [
        replace(shard, tokens=((np.asarray(shard.tokens).astype(np.int64) * 7 + 3) % 257).astype(np.uint32))
        for shard in windows.dataset.shards
    ]
    windows = replace(windows, dataset=replace(windows.dataset, shards=shards))
    return evaluate_held_out(model, windows, *arguments, **more)


LOADER, EVALUATION = "quillgpt.data.loader.BatchLoader.batch", "quillgpt.train.loop.evaluate_held_out"

Examine = Callable[..., Diagnosis]


@pytest.fixture
def examine(text: Path, small_band: Band, tmp_path: Path) -> Examine:
    """Train the small recipe with settings changed and something of the code replaced, then examine the run."""

    def examined(place: str = "", fault: Callable[..., object] | None = None, **changes: object) -> Diagnosis:
        with pytest.MonkeyPatch.context() as patch:
            if fault is not None:
                patch.setattr(place, fault)
            outcome = train(settings(text, tmp_path / "run", **changes))
        return diagnose(outcome.run, bands=[small_band])

    return examined


@pytest.mark.parametrize("changes", [{"seed": 100}, {"seed": 101, "log_every": 1}, {"seed": 102, "dtype": "bf16"}])
def test_a_healthy_run_is_inside_and_nothing_is_found(examine: Examine, changes: dict[str, object]) -> None:
    diagnosis = examine(**changes)
    assert diagnosis.verdict == "inside the reference band, at every point"
    assert diagnosis.findings == {}
    assert diagnosis.not_checked == {}
    assert diagnosis.checked == tuple(CAUSES)


@pytest.mark.parametrize(
    ("fault", "cause", "side"),
    [
        (first_batch, "repeated batch", "below"),
        (one_earlier, "targets shifted", "below"),
        (one_later, "targets shifted", ""),  # which is about as easy to learn here
        (in_order, "data not shuffled", ""),
    ],
)
def test_wrong_batches_are_named_first(examine: Examine, fault: Callable[..., Batch], cause: str, side: str) -> None:
    diagnosis = examine(LOADER, fault)
    assert list(diagnosis.findings) == [cause]
    assert side in diagnosis.verdict


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"lr": 8e-2, "min_lr": 8e-3}, "learning rate too high"),
        ({"lr": 8e-4, "min_lr": 8e-5}, "learning rate too low"),
        ({"lr": 0.0, "min_lr": 0.0}, "learning rate zero"),
    ],
)
def test_a_rate_that_is_not_the_recipes_is_outside_and_named_first(
    examine: Examine, changes: dict[str, object], cause: str
) -> None:
    diagnosis = examine(**changes)
    assert next(iter(diagnosis.findings)) == cause
    assert "above the reference band since step" in diagnosis.verdict


def test_dropout_left_on_in_evaluation_is_named_first(examine: Examine) -> None:
    assert list(examine(EVALUATION, with_dropout, dropout=0.2).findings) == ["dropout left on in evaluation"]


def test_dropout_in_training_alone_is_no_cause(examine: Examine) -> None:
    diagnosis = examine(dropout=0.2)
    assert diagnosis.verdict == "no band for these settings: dropout 0.2, not 0.0 (of the recipe small)"
    assert diagnosis.is_healthy


def test_an_evaluation_in_other_tokens_is_named_first(examine: Examine) -> None:
    assert list(examine(EVALUATION, in_other_tokens).findings) == ["evaluated in another tokenizer"]


def test_an_evaluation_of_other_weights_is_named_first(examine: Examine) -> None:
    def of_half_the_size(model: GPT, *arguments: Any, **more: Any) -> HeldOutLoss:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.token_embedding.weight.mul_(0.5)
        return evaluate_held_out(other, *arguments, **more)

    assert list(examine(EVALUATION, of_half_the_size).findings) == ["evaluated with another model"]


def test_a_batch_too_small_is_named_first(examine: Examine) -> None:
    diagnosis = examine(batch_size=1)
    assert next(iter(diagnosis.findings)) == "batch too small"
    assert "tokens_per_step 32, not 512" in diagnosis.verdict


def test_data_of_another_tokenizer_is_named_first(text: Path, small_band: Band, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(text, data)
    outcome = train(settings(data, tmp_path / "run", steps=8))
    shutil.rmtree(data)
    recut = DataConfig(source="text", path=str(text.parent / "texts"), tokenizer="character")
    prepare(recut, vocab_size=257, out=data)
    diagnosis = diagnose(outcome.run, bands=[small_band])
    assert next(iter(diagnosis.findings)) == "wrong tokenizer"
    assert "holds other data than the run was trained on" in diagnosis.not_checked["targets shifted"]


def test_the_shipped_debug_recipe_is_inside_its_shipped_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    band = next(band for band in shipped_bands() if band.recipe == "debug")
    monkeypatch.chdir(tmp_path)
    config = load_recipe("debug", out="runs/debug", device="cpu", threads=1, steps=100, decay_steps=200, eval_every=0)
    data = open_data(config, None, Ranks(), Quiet())
    if data.train.fingerprint != band.fingerprint:
        pytest.skip(f"the band was made on another standard library: {band.data}, here {platform.python_version()}")
    diagnosis = diagnose(train(config).run)
    assert diagnosis.verdict == "inside the reference band, at every point"
    assert diagnosis.is_healthy
