"""A small recipe for the doctor's tests: generated text, a model of width 32, 100 steps of a few milliseconds."""

from pathlib import Path

import numpy as np

from quillgpt.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, updated
from quillgpt.data.prepare import prepare

STEPS, LOG_EVERY, SEEDS = 100, 4, range(1, 9)


def prepare_text(folder: Path) -> Path:
    """Prepared data: 240 documents of made-up words, as bytes; neighbouring documents are equally repetitive."""
    random = np.random.default_rng(0)
    syllables = [
        [random.choice(list("bdgklmnprst")) + random.choice(list("aeiou")) for _ in range(3)] for _ in range(30)
    ]
    words = ["".join(three) for three in syllables]
    (folder / "texts").mkdir()
    for number in range(240):
        ranks = random.zipf(1.3 + 0.3 * (number // 10 % 4), size=80) % len(words)  # the first words are the commonest
        (folder / "texts" / f"{number:03}.txt").write_text(" ".join(words[rank] for rank in ranks) + "\n")
    source = DataConfig(source="text", path=str(folder / "texts"), tokenizer="byte")
    prepare(source, vocab_size=257, out=folder / "data")
    return folder / "data"


def settings(data: Path, out: Path, **changes: object) -> RunConfig:
    """The small recipe."""
    config = RunConfig(
        model=ModelConfig(n_layer=1, n_head=2, n_embd=32, context_length=32, vocab_size=257),
        data=DataConfig(source="text", path="", tokenizer="byte", data=str(data)),
        optim=OptimConfig(lr=8e-3, min_lr=8e-4, warmup_steps=10),
        train=TrainConfig(steps=STEPS, batch_size=16, log_every=LOG_EVERY, seed=100, out=str(out)),
    )
    fixed = {"eval_every": 0, "eval_tokens": 4000, "save_every": 0}
    fixed |= {"device": "cpu", "dtype": "fp32", "compile": "off", "threads": 1}
    return updated(config, fixed | changes, where="test")
