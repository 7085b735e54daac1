"""Runs with a fault introduced on purpose: the doctor names it first. Healthy runs: it finds nothing."""

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
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.loader import BatchLoader, ValidationWindows
from quillgpt.data.prepare import prepare
from quillgpt.distributed import Ranks
from quillgpt.evaluate import loss as val_loss
from quillgpt.evaluate.loss import ValidationLoss, evaluate_loss
from quillgpt.lab.bands.band import Band, shipped_bands
from quillgpt.lab.doctor import diagnose
from quillgpt.lab.doctor.causes import CAUSES
from quillgpt.lab.doctor.diagnose import Diagnosis
from quillgpt.lab.doctor.probe import tokens_from
from quillgpt.model.gpt import GPT
from quillgpt.recipes import recipe_config
from quillgpt.training.loop import train
from quillgpt.training.screen import Screen
from quillgpt.training.setup import open_data

Batch = tuple[Tensor, Tensor]
ORIGINAL = BatchLoader.batch


def first_batch(loader: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """The fault: every step sees the same sequences."""
    return ORIGINAL(loader, 0, rank, world_size)


def one_later(loader: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """The fault: the target of a position is not the next token but the one after it."""
    inputs, targets = ORIGINAL(loader, step, rank, world_size)
    return inputs, targets.roll(-1, dims=1)


def one_earlier(loader: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """The fault: the target of a position is its own token."""
    inputs, _ = ORIGINAL(loader, step, rank, world_size)
    return inputs, inputs.clone()


def in_order(loader: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """The fault: sequences in file order."""
    length, rows = loader._context_length, loader._schedule.global_batch_size_at(step)
    tokens = np.concatenate([np.asarray(shard) for shard in loader._tokens]).astype(np.int64)
    begin = loader._schedule.first_token(step)
    window = torch.from_numpy(tokens[begin : begin + rows * length + 1])
    return window[:-1].view(rows, length), window[1:].view(rows, length)


def with_dropout(model: GPT, *arguments: Any, **more: Any) -> ValidationLoss:
    """The fault: an evaluation that leaves the model in training mode."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(val_loss, "evaluation_mode", lambda model: contextlib.nullcontext())
        return evaluate_loss(model, *arguments, **more)


def in_other_tokens(model: GPT, windows: ValidationWindows, *arguments: Any, **more: Any) -> ValidationLoss:
    """The fault: validation text in the tokens of another vocabulary, here the same bytes with other numbers."""
    shards = [
        replace(shard, tokens=((np.asarray(shard.tokens).astype(np.int64) * 7 + 3) % 257).astype(np.uint32))
        for shard in windows.dataset.shards
    ]
    windows = replace(windows, dataset=replace(windows.dataset, shards=shards))
    return evaluate_loss(model, windows, *arguments, **more)


def of_other_weights(model: GPT, *arguments: Any, **more: Any) -> ValidationLoss:
    """The fault: another model is evaluated."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.token_embedding.weight.mul_(0.5)
    return evaluate_loss(other, *arguments, **more)


LOADER, EVALUATION = "quillgpt.data.loader.BatchLoader.batch", "quillgpt.training.loop.evaluate_loss"
FAULTS: list[tuple[str, str, Callable[..., Any] | None, dict[str, object], str]] = [
    ("repeated batch", LOADER, first_batch, {}, "below"),
    ("targets shifted", LOADER, one_earlier, {}, "below"),
    ("targets shifted", LOADER, one_later, {}, ""),  # which is about as easy to learn here
    ("data not shuffled", LOADER, in_order, {}, ""),
    ("dropout left on in evaluation", EVALUATION, with_dropout, {"dropout": 0.2}, ""),
    ("wrong tokenizer in evaluation", EVALUATION, in_other_tokens, {}, ""),
    ("evaluated with another model", EVALUATION, of_other_weights, {}, ""),
    ("learning rate too high", "", None, {"lr": 8e-2, "min_lr": 8e-3}, "above the reference band since step"),
    ("learning rate too low", "", None, {"lr": 8e-4, "min_lr": 8e-5}, "above the reference band since step"),
    ("learning rate zero", "", None, {"lr": 0.0, "min_lr": 0.0}, "above the reference band since step"),
    ("batch too small", "", None, {"batch_size": 1}, "tokens_per_step 32, not 512"),
]

Examine = Callable[..., Diagnosis]


@pytest.fixture
def examine(text: Path, small_band: Band, tmp_path: Path) -> Examine:
    """Train the small recipe with changed settings and something of the code replaced, then diagnose the run."""

    def examined(out: str, place: str = "", fault: Callable[..., object] | None = None, **changes: object) -> Diagnosis:
        with pytest.MonkeyPatch.context() as patch:
            if fault is not None:
                patch.setattr(place, fault)
            outcome = train(settings(text, tmp_path / out, **changes))
        return diagnose(outcome.run, bands=[small_band])

    return examined


def test_a_healthy_run_is_inside_its_band_and_nothing_is_found(examine: Examine) -> None:
    for number, changes in enumerate([{"seed": 100}, {"seed": 101, "log_every": 1}, {"seed": 102, "dtype": "bf16"}]):
        diagnosis = examine(str(number), **changes)
        assert diagnosis.verdict == "inside the reference band, at every point", changes
        assert (diagnosis.findings, diagnosis.not_checked) == ({}, {}), changes
        assert diagnosis.checked == tuple(CAUSES)
    diagnosis = examine("dropout", dropout=0.2)
    assert diagnosis.verdict == "no band for these settings: dropout 0.2, not 0.0 (of the recipe small)"
    assert diagnosis.is_healthy


def test_a_fault_is_named_first(examine: Examine) -> None:
    wrong = []
    for number, (cause, place, fault, changes, verdict) in enumerate(FAULTS):
        diagnosis = examine(str(number), place, fault, **changes)
        findings = list(diagnosis.findings)
        is_right = findings == [cause] if fault else findings[:1] == [cause]
        if not is_right or verdict not in diagnosis.verdict:
            wrong.append((cause, findings, diagnosis.verdict))
    assert not wrong


def test_data_of_another_tokenizer_is_named_first(text: Path, small_band: Band, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(text, data)
    outcome = train(settings(data, tmp_path / "run", steps=8))
    shutil.rmtree(data)
    other = DataConfig(source="text", path=str(text.parent / "texts"), tokenizer="character")
    prepare(other, vocab_size=257, out=data)
    diagnosis = diagnose(outcome.run, bands=[small_band])
    assert next(iter(diagnosis.findings)) == "wrong tokenizer"
    assert "is not the data the run was trained on" in diagnosis.not_checked["targets shifted"]


def test_tokens_are_read_in_file_order_around_the_end() -> None:
    documents = [[*range(number, number + 3)] for number in range(0, 21, 3)]
    dataset = TokenDataset.from_documents(documents, 30, documents_per_shard=2)
    for start, count in ((0, 21), (4, 5), (19, 30), (45, 3)):
        assert tokens_from(dataset, start, count).tolist() == [(start + i) % 21 for i in range(count)]


def test_the_debug_recipe_is_inside_its_shipped_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    band = next(band for band in shipped_bands() if band.recipe == "debug")
    monkeypatch.chdir(tmp_path)
    config = recipe_config("debug", out="runs/debug", device="cpu", threads=1, steps=100, decay_steps=200, eval_every=0)
    data = open_data(config, None, Ranks(), Screen())
    if data.train.fingerprint != band.fingerprint:
        pytest.skip(f"the band is of another standard library: {band.data}, here {platform.python_version()}")
    diagnosis = diagnose(train(config).run)
    assert diagnosis.verdict == "inside the reference band, at every point"
    assert diagnosis.is_healthy
