"""Damaged checkpoints: every flipped bit is detected, the damage is named, and the checkpoint before is used."""

from pathlib import Path

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.config import RunConfig
from quillgpt.errors import CheckpointError
from quillgpt.training.loop import train
from small_runs import changed, newest, run_of


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    small_run: RunConfig, messages: list[str]
) -> None:
    train(small_run)
    folder = newest(small_run).path
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json"):
        path = folder / name
        content = path.read_bytes()
        for damaged in (flip(content, 4 * len(content)), content[:-1], None):
            messages.clear()
            path.unlink() if damaged is None else path.write_bytes(damaged)
            found = checkpoint.newest_intact(run_of(small_run))
            assert found is not None
            assert found.step == 10, name
            assert str(path) in messages[0]
            assert "before it" in messages[0]
            path.write_bytes(content)


def test_every_flipped_bit_is_detected(small_run: RunConfig) -> None:
    train(changed(small_run, steps=2))
    found, generator = newest(small_run), torch.Generator().manual_seed(0)
    for name in found.manifest["files"]:
        path: Path = found.path / name
        content = path.read_bytes()
        for bit in torch.randint(8 * len(content), (20,), generator=generator).tolist():
            path.write_bytes(flip(content, bit))
            with pytest.raises(CheckpointError, match="damaged"):
                checkpoint.verify(found)
        path.write_bytes(content)
    checkpoint.verify(found)
