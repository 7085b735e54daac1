"""Which checkpoint of a run is found, and that damaged ones are not used."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quillgpt import checkpoint
from quillgpt.checkpoint import Checkpoint
from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError
from quillgpt.model.gpt import GPT
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import load_tokenizer
from small_runs import reseal

MODEL = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=257))

SAVED: dict[str, Any] = {
    "model": MODEL,
    "optimizer_state": {},
    "state": {},
    "runtime": {},
    "config_toml": "",
    "tokenizer": load_tokenizer("byte"),
    "data_fingerprint": "",
}


def save_steps(path: Path, losses: dict[int, float | None]) -> RunDirectory:
    """A run with a checkpoint of each step and validation loss."""
    run = RunDirectory(path)
    for step, val_loss in losses.items():
        checkpoint.save(run, **SAVED | {"step": step, "val_loss": val_loss})
    return run


def damage(saved: Checkpoint, name: str = checkpoint.MODEL) -> None:
    content = bytearray((saved.path / name).read_bytes())
    content[-1] ^= 1
    (saved.path / name).write_bytes(content)


def test_the_best_intact_checkpoint_is_found_or_else_the_newest(tmp_path: Path) -> None:
    run = save_steps(tmp_path / "run", {1: 3.0, 2: 1.0, 3: 2.0, 4: None})
    saved = checkpoint.committed(run)
    assert [one.step for one in saved] == [1, 2, 3, 4]
    for expected in (2, 3, 1, 4):
        found = checkpoint.find(run.path)
        assert found.step == expected
        assert checkpoint.find(found.path) == found
        damage(found)
    with pytest.raises(
        CheckpointError, match=r"no intact checkpoint in it: .*model\.safetensors: damaged: its content"
    ):
        checkpoint.find(run.path)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.find(saved[0].path)


def test_a_run_continues_from_its_newest_checkpoint_and_from_no_older_one_unasked(tmp_path: Path) -> None:
    assert checkpoint.latest_intact(RunDirectory(tmp_path / "none")) is None
    run = save_steps(tmp_path / "run", {1: 3.0, 2: 1.0, 3: 2.0})
    newest = checkpoint.committed(run)[-1]
    assert checkpoint.latest_intact(run) == newest
    damage(newest, checkpoint.OPTIMIZER)
    with pytest.raises(CheckpointError, match=r"step-000003/optimizer\.safetensors: damaged.*the intact step 2,"):
        checkpoint.latest_intact(run)
    assert checkpoint.find(newest.path, model_only=True) == newest  # its model is intact
    newest.path.rename(tmp_path / "elsewhere")
    found = checkpoint.latest_intact(run)
    assert found is not None
    assert found.step == 2


def test_a_damaged_checkpoint_that_is_not_used_is_named(tmp_path: Path, messages: list[str]) -> None:
    run = save_steps(tmp_path / "run", {1: 3.0, 2: 1.0, 3: 2.0})
    saved = checkpoint.committed(run)
    (saved[0].path / checkpoint.MANIFEST).write_text("")
    damage(saved[1])
    assert checkpoint.find(run.path).step == 3
    expected = ("step-000001/manifest.json: damaged", "step-000002/model.safetensors: damaged")
    for text, line in zip(expected, messages, strict=True):
        assert text in line
        assert line.endswith("; using step 3")


def test_pruning_keeps_the_best_and_the_last_intact_and_deletes_nothing_damaged(
    tmp_path: Path, messages: list[str]
) -> None:
    run = save_steps(tmp_path / "run", {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 4.0})
    checkpoint.prune(run, keep_last=2)
    assert [one.step for one in checkpoint.committed(run)] == [2, 4, 5]
    damage(checkpoint.committed(run)[-1])
    (run.checkpoints / "step-000002" / checkpoint.MANIFEST).write_text("{}")
    assert messages == []
    for step in (6, 7, 8):
        save_steps(run.path, {step: 5.0})
        checkpoint.prune(run, keep_last=1)
    assert "step-000005/model.safetensors: damaged" in messages[0]
    assert [one.step for one in checkpoint.scan(run)[0]] == [5, 6, 8]  # 5 is damaged, 6 was the best intact one
    assert {path.name for path in checkpoint.scan(run)[1]} == {"step-000002"}


def test_pruning_a_link_deletes_the_link_only(tmp_path: Path) -> None:
    run = save_steps(tmp_path / "run", {1: None, 2: None})
    (run.checkpoints / "step-000001").rename(tmp_path / "elsewhere")
    (run.checkpoints / "step-000001").symlink_to(tmp_path / "elsewhere")
    checkpoint.prune(run, keep_last=1)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000002"]
    assert checkpoint.find(tmp_path / "elsewhere").step == 1


def test_a_checkpoint_of_the_same_step_is_replaced_only_by_a_complete_one(tmp_path: Path) -> None:
    run = save_steps(tmp_path / "run", {1: 1.0})
    with pytest.raises(AttributeError):
        checkpoint.save(run, **SAVED | {"step": 1, "val_loss": 2.0, "tokenizer": None})
    found = checkpoint.latest_intact(run)
    assert found is not None
    assert found.manifest.val_loss == 1.0


def test_a_manifest_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (saved,) = checkpoint.committed(save_steps(tmp_path / "run", {1: None}))
    path = saved.path / checkpoint.MANIFEST
    content = path.read_text()
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        r"from a newer quillgpt \(schema 2, this one reads 1\); update it": lambda it: it.update(schema=2),
        "invalid files": lambda it: it.update(files={}),
        "invalid step: -1": lambda it: it.update(step=-1),
        "Expected `int`": lambda it: it.update(step="1"),
        "invalid n_layer": lambda it: it["model"].update(n_layer=0),
        "unknown field": lambda it: it.update(surprise=1),
        "a file in the checkpoint": lambda it: it["files"].update({"../x": it["files"][checkpoint.MODEL]}),
    }
    for message, change in changes.items():
        path.write_text(content)
        reseal(path, change)
        with pytest.raises(CheckpointError, match=message):
            checkpoint.read_checkpoint(saved.path)
    path.write_text(content[:-9])
    with pytest.raises(CheckpointError, match="damaged: not JSON"):
        checkpoint.read_checkpoint(saved.path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"not a checkpoint: it has no manifest\.json"):
        checkpoint.read_checkpoint(saved.path)
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="a named pipe"):
        checkpoint.read_checkpoint(saved.path)
