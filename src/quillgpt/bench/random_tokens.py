"""Tokens drawn at random, for the speed of a recipe whose own data is not at hand: 54 GB of OpenWebText for gpt2-124m.

A step does the same arithmetic whatever the tokens are. They are prepared as any text is, with one character for each
token of the vocabulary, so that everything behind them is the same code.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from quillgpt import files
from quillgpt.config import DataConfig, RunConfig
from quillgpt.data.prepare import prepare
from quillgpt.data.text_to_shards import Means

BYTES = 256  # every character tokenizer has the bytes, and an end of text
SURROGATES = range(0xD800, 0xE000)
TOKENS = 1 << 21
VOCABULARIES = {"gpt2": 50_257, "byte": 257, "character": 257}
"""sizes that do not depend on `vocab_size`; of characters that of an English text, as Shakespeare's"""
FETCHED = {"openwebtext", "fineweb-edu"}
"""sources of many gigabytes"""


def with_random_tokens(config: RunConfig, folder: Path) -> RunConfig:
    """The same settings with such data, prepared in the folder; the vocabulary has the size the recipe's would have."""
    vocab_size = VOCABULARIES.get(config.data.tokenizer, config.model.vocab_size)
    out = folder / f"random-{vocab_size}"
    if not out.exists():
        text = folder / f"random-{vocab_size}.txt"
        files.write_text(text, random_text(vocab_size, TOKENS))
        settings = DataConfig(source="text", path=str(text), tokenizer="character", data=str(out))
        prepare(settings, vocab_size=vocab_size, out=out, means=Means(processes=1))
    data = DataConfig(source="text", path="", tokenizer="character", data=str(out))
    return replace(config, data=data, model=replace(config.model, vocab_size=vocab_size))


def random_text(vocab_size: int, length: int) -> str:
    """Text whose character vocabulary has this size (257 at least): each of its characters once, then drawn evenly."""
    other = [code for code in range(0x100, 0x100 + vocab_size + len(SURROGATES)) if code not in SURROGATES]
    codes = np.array([*range(0x20, 0x7F), *other[: max(0, vocab_size - BYTES - 1)]], dtype=np.uint32)
    drawn = np.random.default_rng(0).choice(codes, size=length)
    return np.concatenate([codes, drawn]).astype("<u4").tobytes().decode("utf-32-le")


def is_at_hand(config: RunConfig, directory: Path) -> bool:
    """Whether the data is prepared, or is so in a moment: not where it would be fetched and is large."""
    return (directory / "manifest.json").is_file() or config.data.source not in FETCHED or bool(config.data.path)
