"""Which checkpoint of a run is found, and that damaged ones are not used."""

import json
from pathlib import Path

import pytest

from quillgpt import checkpoint
from quillgpt.checkpoint import Checkpoint
from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError
from quillgpt.model.gpt import GPT
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import load_tokenizer

MODEL = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=257))


def save_steps(path: Path, losses: dict[int, float | None]) -> RunDirectory:
    """A run with a checkpoint of each step and validation loss."""
    run = RunDirectory(path)
    for step, val_loss in losses.items():
        checkpoint.save(
            run,
            step=step,
            model=MODEL,
            optimizer_state={},
            state={},
            runtime={},
            config_toml="",
            tokenizer=load_tokenizer("byte"),
            data_fingerprint="",
            val_loss=val_loss,
        )
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
        CheckpointError, match=r"no intact checkpoint in it \(.*model\.safetensors: damaged: its content"
    ):
        checkpoint.find(run.path)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.find(saved[0].path)


def test_a_run_continues_from_the_newest_intact_checkpoint_with_a_warning(tmp_path: Path, messages: list[str]) -> None:
    run = save_steps(tmp_path / "run", {1: 3.0, 2: 1.0, 3: 2.0})
    newest = checkpoint.committed(run)[-1]
    assert checkpoint.newest_intact(run) == newest
    assert messages == []
    damage(newest, checkpoint.OPTIMIZER)
    found = checkpoint.newest_intact(run)
    assert found is not None
    assert found.step == 2
    (line,) = messages
    assert f"{newest.path / checkpoint.OPTIMIZER}: damaged" in line
    assert checkpoint.find(newest.path, model_only=True) == newest  # its model is intact


def test_pruning_keeps_the_best_and_the_last(tmp_path: Path) -> None:
    run = save_steps(tmp_path / "run", {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 4.0})
    checkpoint.prune(run, keep_last=2)
    assert [one.step for one in checkpoint.committed(run)] == [2, 4, 5]


def test_a_manifest_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (saved,) = checkpoint.committed(save_steps(tmp_path / "run", {1: None}))
    path, manifest = saved.path / checkpoint.MANIFEST, dict(saved.manifest)
    for content, message in (
        (json.dumps(manifest | {"schema": 2}), r"from a newer quillgpt \(schema 2, this one reads 1\); update it"),
        (json.dumps(manifest | {"files": {}}), "damaged; use another checkpoint"),
        (json.dumps(manifest)[:-9], "damaged; use another checkpoint"),
    ):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=message):
            checkpoint.read_checkpoint(saved.path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"not a checkpoint: manifest\.json: No such file"):
        checkpoint.read_checkpoint(saved.path)
