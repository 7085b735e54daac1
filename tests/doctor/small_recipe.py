"""A small recipe with a band of its own: generated text, a model 32 wide, 100 steps of a few milliseconds."""

from pathlib import Path

import numpy as np

from quillgpt.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, flatten, group_of, updated
from quillgpt.data.prepare import prepare
from quillgpt.evaluate.bands import Band
from quillgpt.evaluate.bands.finding import defining_settings
from quillgpt.evaluate.bands.making import make_band
from quillgpt.run_record import RunRecord

STEPS, LOG_EVERY, SEEDS = 100, 4, range(1, 9)


def document(number: int, random: np.random.Generator, words: list[str]) -> str:
    """Words of which the first are the most common; each ten documents that lie together are as monotonous."""
    ranks = random.zipf(1.3 + 0.3 * (number // 10 % 4), size=80) % len(words)
    return " ".join(words[rank] for rank in ranks) + "\n"


def prepare_text(folder: Path) -> Path:
    """Prepared data: 240 documents of made-up words, as bytes."""
    random = np.random.default_rng(0)
    words = [
        "".join(random.choice(list("bdgklmnprst")) + random.choice(list("aeiou")) for _ in range(3)) for _ in range(30)
    ]
    (folder / "texts").mkdir()
    for number in range(240):
        (folder / "texts" / f"{number:03}.txt").write_text(document(number, random, words))
    prepare(
        DataConfig(source="text", path=str(folder / "texts"), tokenizer="byte"), vocab_size=257, out=folder / "data"
    )
    return folder / "data"


def settings(data: Path, out: Path, **changes: object) -> RunConfig:
    """The small recipe."""
    config = RunConfig(
        model=ModelConfig(n_layer=1, n_head=2, n_embd=32, context_length=32, vocab_size=257),
        data=DataConfig(source="text", path="", tokenizer="byte", data=str(data)),
        optim=OptimConfig(lr=8e-3, min_lr=8e-4, warmup_steps=10),
        train=TrainConfig(
            steps=STEPS,
            batch_size=16,
            eval_every=0,
            eval_tokens=4000,
            save_every=0,
            log_every=LOG_EVERY,
            device="cpu",
            dtype="fp32",
            compile="off",
            threads=1,
            seed=100,
            out=str(out),
        ),
    )
    return updated(config, changes, where="test")


def band_of(records: list[RunRecord]) -> Band:
    """The band that `benchmarks/reference_bands.py` would make of these runs."""
    config = records[0].config
    about = {
        "recipe": "small",
        "settings": defining_settings(config),
        "fingerprint": records[0].data_fingerprint,
        "data": "generated text",
        "optim": {name: value for name, value in flatten(config).items() if group_of()[name] == "optim"},
        "schedule_steps": config.train.steps,
        "seeds": [record.config.train.seed for record in records],
        "commit": "none",
        "hardware": "this machine",
        "made_with": {},
    }
    losses, norms = (
        np.array([record.series(name)[1] for record in records]) for name in ("mean_loss", "gradient_norm")
    )
    tokens = config.train.batch_size * config.model.context_length
    return make_band(losses, norms, about=about, tokens_per_step=tokens, log_every=LOG_EVERY)
