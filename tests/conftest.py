"""Shared fixtures: a small prepared data set, and settings of a run that takes a second."""

from pathlib import Path

import pytest

from quillgpt.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from quillgpt.data.prepare import prepare

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a few hundred short documents in bytes."""
    folder = tmp_path_factory.mktemp("prepared")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(300):
        words = " ".join(f"word{(number * k) % 17}" for k in range(1, 30))
        (texts / f"{number:03}.txt").write_text(f"document {number}: {words}\n")
    settings = DataConfig(source="text", path=str(texts), tokenizer="byte")
    prepare(settings, vocab_size=257, out=folder / "data")
    return folder / "data"


@pytest.fixture
def small_run(prepared: Path, tmp_path: Path) -> RunConfig:
    """Settings of a tiny model on the prepared data, fp32, eager, one thread."""
    return RunConfig(
        model=ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=32, vocab_size=257),
        data=DataConfig(source="text", path="", tokenizer="byte", data=str(prepared)),
        optim=OptimConfig(lr=3e-3, min_lr=3e-4, warmup_steps=4),
        train=TrainConfig(
            steps=20,
            batch_size=4,
            gradient_accumulation_steps=2,
            eval_every=10,
            eval_tokens=500,
            save_every=10,
            log_every=1,
            device="cpu",
            dtype="fp32",
            compile="off",
            threads=1,
            out=str(tmp_path / "run"),
        ),
    )
