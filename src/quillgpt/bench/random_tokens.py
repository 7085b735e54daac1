"""Tokens drawn at random, for the speed of a recipe whose own data is not at hand: 54 GB of OpenWebText for gpt2-124m.

A step does the same arithmetic whatever the tokens are. They are prepared as any text is, with one character for each
token of the vocabulary, so that everything behind them is the same code.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from quillgpt import files
from quillgpt.config import DataConfig, RunConfig
from quillgpt.data.directory import data_directory, prepare_command
from quillgpt.data.manifest import MANIFEST
from quillgpt.data.prepare import prepare
from quillgpt.data.text_to_shards import Means
from quillgpt.errors import DataError, require
from quillgpt.train.starting_point import data_settings, starting_point

BYTES = 256  # every character tokenizer has the bytes, and an end of text
SURROGATES = range(0xD800, 0xE000)
TOKENS = 1 << 21
VOCABULARIES = {"gpt2": 50_257, "byte": 257, "character": 257}
"""sizes that do not depend on `vocab_size`; of characters that of an English text, as Shakespeare's"""
MOST_CHARACTERS = 1_000_000
"""of Unicode's 1,112,064"""
FETCHED = {"openwebtext", "fineweb-edu"}
"""sources of many gigabytes"""


def with_random_tokens(config: RunConfig, folder: Path) -> RunConfig:
    """The same settings with such data, prepared in the folder; the vocabulary has the size the recipe's would have."""
    vocab_size = VOCABULARIES.get(config.data.tokenizer, config.model.vocab_size)
    require(
        "vocab_size", vocab_size, vocab_size <= MOST_CHARACTERS, f"at most {MOST_CHARACTERS:,} with --random-tokens"
    )
    out = folder / f"random-{vocab_size}"
    if not out.exists():
        text = folder / f"random-{vocab_size}.txt"
        files.write_text(text, random_text(vocab_size, TOKENS))
        settings = DataConfig(source="text", path=str(text), tokenizer="character", data=str(out))
        prepare(settings, vocab_size=vocab_size, out=out, means=Means(processes=1))
    data = DataConfig(source="text", path="", tokenizer="character", data=str(out))
    train = replace(config.train, init="scratch")  # other weights would bring their tokenizer
    return replace(config, data=data, train=train, model=replace(config.model, vocab_size=vocab_size))


def random_text(vocab_size: int, length: int) -> str:
    """Text whose character vocabulary has this size (257 at least): each of its characters once, then drawn evenly."""
    other = [code for code in range(0x100, 0x100 + vocab_size + len(SURROGATES)) if code not in SURROGATES]
    codes = np.array([*range(0x20, 0x7F), *other[: max(0, vocab_size - BYTES - 1)]], dtype=np.uint32)
    drawn = np.random.default_rng(0).choice(codes, size=length)
    return np.concatenate([codes, drawn]).astype("<u4").tobytes().decode("utf-32-le")


def check_at_hand(config: RunConfig, remedy: str) -> None:
    """Refuse data that is not prepared where preparing it would fetch many gigabytes; the other is soon there."""
    settings, vocab_size = data_settings(config, starting_point(config)), config.model.vocab_size
    directory = data_directory(settings, vocab_size)
    if settings.source in FETCHED and not settings.path and not (directory / MANIFEST).is_file():
        makes = f"`{prepare_command(settings, vocab_size)}` fetches and prepares it"
        raise DataError(f"{directory}: no prepared data there; {makes}{remedy}")
