"""Damaged checkpoints: every flipped bit is detected, the damage is named, and nothing is lost."""

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fault_injection import FailingReads
from quillgpt import checkpoint
from quillgpt.config import RunConfig
from quillgpt.errors import CheckpointError, DiskError, QuillError
from quillgpt.run_dir import read_metrics
from quillgpt.training.loop import train
from quillgpt.training.state import read_state, restored_runtime
from small_runs import RUNTIME, changed, newest, reseal, run_of


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock, which every start rewrites."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def damages(folder: Path) -> Iterator[str]:
    """Damage one file of a checkpoint after the other, in several ways; yield its name while it is damaged."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for damaged in (flip(content, 8), content[: len(content) // 2], b"", None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            yield path.name
            path.write_bytes(content)


def test_a_run_whose_newest_checkpoint_is_damaged_is_not_trained_and_loses_nothing(small_run: RunConfig) -> None:
    train(small_run)
    folder = newest(small_run).path
    for name in damages(folder):
        before = tree(run_of(small_run).path)
        for steps in (5, 20, 30):
            with pytest.raises(
                CheckpointError, match=rf"{folder}.*the intact step 10, or choose another --out"
            ) as error:
                train(changed(small_run, steps=steps, keep_last=1))
            assert name in str(error.value)
            assert error.value.exit_code == 65
        assert tree(run_of(small_run).path) == before, name
    shutil.rmtree(folder.with_name("step-000010"))
    (folder / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: missing; restore it, or choose another --out"):
        train(small_run)


def test_a_read_error_is_not_an_absence(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each open, listing and status of the start fails once: it is refused, or continues; it never begins again."""
    train(changed(small_run, steps=10))
    run = run_of(small_run)
    shutil.copytree(run.path, run.path.with_name("copy"))
    for call, number in (
        (os.open, errno.EIO),
        (os.listdir, errno.ESTALE),
        (os.open, errno.EMFILE),
        (os.fstat, errno.EIO),
    ):
        for at in itertools.count():
            shutil.rmtree(run.path)
            shutil.copytree(run.path.with_name("copy"), run.path)
            before = tree(run.path)
            left = itertools.count(-at)

            def failing(target: Any, *rest: Any, call: Any = call, number: int = number, left: Any = left) -> Any:
                is_ours = isinstance(target, int) or "checkpoints" in str(target)
                if is_ours and next(left) == 0:
                    raise OSError(number, os.strerror(number))
                return call(target, *rest)

            with monkeypatch.context() as patch:
                patch.setattr(os, call.__name__, failing)
                message, step = "", 0
                try:
                    step = getattr(checkpoint.latest_intact(run), "step", 0)
                except CheckpointError as error:
                    message = str(error)
            assert step == 10 or "cannot be read" in message, (call, at)
            assert tree(run.path) == before
            if next(left) <= 0:
                break
        assert at > 0


def test_a_resumed_run_meets_a_read_error_anywhere_and_never_begins_again(
    small_run: RunConfig, tmp_path: Path, messages: list[str]
) -> None:
    train(changed(small_run, steps=10))
    run = run_of(small_run)
    shutil.copytree(run.path, tmp_path / "copy")
    for at in itertools.count(1):
        shutil.rmtree(run.path)
        shutil.copytree(tmp_path / "copy", run.path)
        messages.clear()
        with pytest.MonkeyPatch.context() as patch:
            reads = FailingReads(patch, run.path, at=at, number=errno.EIO if at % 2 else errno.EMFILE)
            refused = ""
            try:
                train(changed(small_run, steps=12))
            except QuillError as error:
                refused = str(error)
        if not reads.failed:
            break
        continued = any(str(run.checkpoints / "step-000010") in message for message in messages)
        assert continued or refused, reads.failed
        kept = checkpoint.find(run.checkpoints / "step-000010")
        assert kept.step == 10
        assert [line["step"] for line in read_metrics(run.metrics)][:10] == list(range(1, 11)), reads.failed
    assert at > 20


def test_an_optimizer_state_of_other_shapes_is_refused_before_it_is_used(small_run: RunConfig) -> None:
    train(changed(small_run, steps=10))
    found = newest(small_run)
    path = found.path / checkpoint.OPTIMIZER
    original = found.tensors(checkpoint.OPTIMIZER)
    name = "blocks.0.mlp.expand.weight.exp_avg"
    changes: dict[str, dict[str, torch.Tensor | None]] = {
        "expected float32 of shape": {name: original[name][:1]},
        "float16 of shape": {name: original[name].half()},
        r"of shape \(\), expected": {name: torch.tensor(0.0)},
        "not finite": {name: original[name] * math.nan},
        "is missing": {name: None},
        "does not belong to adamw": {"other.exp_avg": torch.zeros(2)},
        "missing": dict.fromkeys(original),
    }
    for message, change in changes.items():
        tensors = {key: value for key, value in (original | change).items() if value is not None}
        content = safetensors.torch.save(tensors)
        path.write_bytes(content)
        record = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        reseal(found.path / "manifest.json", lambda manifest, r=record: manifest["files"].update({path.name: r}))
        with pytest.raises(CheckpointError, match=rf"{path}: .*{message}"):
            train(small_run)


WRONG_VALUES = (None, True, -1, 0.5, 2**70, 1e308, "", "nan", [], {}, [[1, -1]])


def test_records_of_other_types_or_values_are_refused_or_harmless(small_run: RunConfig) -> None:
    """Every field of state.json and runtime.json is dropped or replaced, with hashes that fit."""
    train(changed(small_run, steps=10))
    folder, pick = newest(small_run).path, random.Random(1)
    for name in (checkpoint.STATE, checkpoint.RUNTIME):
        shutil.copytree(folder, folder.with_name("copy"), dirs_exist_ok=True)
        original = json.loads((folder / name).read_text())
        for field in original:
            change = pick.choice(WRONG_VALUES)
            rest = {key: value for key, value in original.items() if key != field}
            for content in (rest, {**original, field: change}, {**original, "surprise": change}):
                text = json.dumps(content).encode()
                (folder / name).write_bytes(text)
                record = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
                reseal(folder / "manifest.json", lambda it, n=name, r=record: it["files"].update({n: r}))
                refused = pytest.raises(CheckpointError, match=name)
                with refused if content.keys() != original.keys() else contextlib.suppress(QuillError):
                    found = checkpoint.latest_intact(run_of(small_run))
                    assert found is not None
                    read_state(found)
                    restored_runtime(found, RUNTIME, {})
        shutil.rmtree(folder)
        folder.with_name("copy").rename(folder)


def test_metrics_of_a_run_without_checkpoints_are_kept(small_run: RunConfig, messages: list[str]) -> None:
    train(changed(small_run, steps=10))
    run = run_of(small_run)
    before = run.metrics.read_bytes()
    shutil.rmtree(run.checkpoints)
    train(changed(small_run, steps=10))
    assert run.metrics.with_name("metrics.jsonl.1").read_bytes() == before
    assert any("kept as" in message for message in messages)


def test_nothing_is_written_through_links_of_a_run_directory(small_run: RunConfig, tmp_path: Path) -> None:
    train(changed(small_run, steps=10))
    run, victim = run_of(small_run), tmp_path / "victim"
    for name in ("metrics.jsonl", ".lock", "config.toml", "environment.json"):
        victim.write_text("precious")
        (run.path / name).unlink()
        (run.path / name).symlink_to(victim)
        refused = pytest.raises(DiskError, match="a symbolic link; nothing is written through it")
        with refused if name == ".lock" else contextlib.nullcontext():
            train(changed(small_run, steps=20))
        (run.path / name).unlink()
        assert victim.read_text() == "precious", name


def test_every_flipped_bit_is_detected(small_run: RunConfig) -> None:
    train(changed(small_run, steps=2))
    found, generator = newest(small_run), torch.Generator().manual_seed(0)
    for name in found.manifest.files:
        path: Path = found.path / name
        content = path.read_bytes()
        for bit in torch.randint(8 * len(content), (20,), generator=generator).tolist():
            path.write_bytes(flip(content, bit))
            with pytest.raises(CheckpointError, match="damaged"):
                checkpoint.verify(found)
        path.write_bytes(content)
    checkpoint.verify(found)
