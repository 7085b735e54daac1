"""Every tokenizer of the menu, trained if it learns on a small text of four scripts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from quillgpt.tokenizer import TOKENIZERS, Tokenizer, load_tokenizer, train_tokenizer

CACHE = Path(__file__).resolve().parents[3] / "shared" / "data" / "tiktoken-cache"

TEXT = (
    "It isn't the first time, she said; they'll come, we've seen 1,234 of them.\n\n"
    "def encode(text: str) -> list[int]:\n    return [*map(ord, text)]  # naïve, größer, señor\n\n"
    "敏捷的棕色狐狸跳过了懒狗。敏捷的狐狸。 Быстрая лиса. السلام عليكم 🙂🙂 a  b   c\t\r\n"
) * 3
TRAINED_SIZE = 400


@pytest.fixture(scope="session")
def gpt2() -> Iterator[Tokenizer]:
    """GPT-2's tokenizer, from the shared copy of tiktoken's cache or from one that is configured on this machine."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    if before is None and not CACHE.is_dir():
        pytest.skip("no copy of GPT-2's vocabulary here: set TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = before or str(CACHE)
    yield load_tokenizer("gpt2")
    if before is None:
        del os.environ["TIKTOKEN_CACHE_DIR"]


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    """A small BPE."""
    return train_tokenizer("bpe", [TEXT], TRAINED_SIZE)


@pytest.fixture(scope="session", params=list(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Every entry of the menu in turn."""
    if request.param in ("gpt2", "bpe"):
        return request.getfixturevalue(request.param)
    if TOKENIZERS[request.param].learns:
        return train_tokenizer(request.param, [TEXT], TRAINED_SIZE)
    return load_tokenizer(request.param)
