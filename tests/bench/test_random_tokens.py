"""Tokens drawn at random: a vocabulary of the asked size, through the usual preparation."""

from dataclasses import replace
from pathlib import Path

import pytest

from quillgpt.bench import random_tokens
from quillgpt.bench.random_tokens import (
    FETCHED,
    MOST_CHARACTERS,
    VOCABULARIES,
    check_at_hand,
    random_text,
    with_random_tokens,
)
from quillgpt.config import DataConfig, RunConfig, updated
from quillgpt.data.sources import SOURCES
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import ConfigError, DataError
from quillgpt.tokenizer import load_tokenizer
from quillgpt.tokenizer.character import CharacterTokenizer


@pytest.mark.parametrize("vocab_size", [257, 258, 2048, 50257, 60000])
def test_a_text_has_the_vocabulary_it_is_asked_for(vocab_size: int) -> None:
    text = random_text(vocab_size, 100)
    assert CharacterTokenizer(text).vocab_size == vocab_size
    assert text.encode().decode() == text


@pytest.mark.parametrize(("name", "size"), [(name, 2048) for name in ("gpt2", "byte", "character", "bpe")])
def test_the_data_has_the_recipes_vocabulary(
    name: str, size: int, small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_tokens, "TOKENS", 50_000)
    asked = updated(replace(small_run, data=DataConfig(tokenizer=name)), {"vocab_size": size}, where="test")
    config = with_random_tokens(asked, tmp_path)
    train = TokenDataset.open(Path(config.data.data), "train")
    assert train.vocab_size == config.model.vocab_size == VOCABULARIES.get(name, size)
    assert with_random_tokens(asked, tmp_path) == config  # made once


def test_weights_that_would_bring_their_own_tokenizer_are_not_loaded(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_tokens, "TOKENS", 50_000)
    config = with_random_tokens(updated(small_run, {"init": "gpt2"}, where="test"), tmp_path)
    assert config.train.init == "scratch"


def test_more_tokens_than_there_are_characters_are_refused(small_run: RunConfig, tmp_path: Path) -> None:
    asked = updated(
        replace(small_run, data=DataConfig(tokenizer="bpe")), {"vocab_size": MOST_CHARACTERS + 1}, where="test"
    )
    with pytest.raises(ConfigError, match=r"vocab_size = 1000001 is not possible: .* with --random-tokens"):
        with_random_tokens(asked, tmp_path)


def test_sizes_that_are_fixed_are_the_tokenizers_own() -> None:
    assert load_tokenizer("byte").vocab_size == VOCABULARIES["byte"]
    assert CharacterTokenizer("an English text").vocab_size == VOCABULARIES["character"]
    assert SOURCES.keys() >= FETCHED


def test_data_that_would_be_fetched_is_refused_and_other_is_not(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"`quill prepare openwebtext --tokenizer byte` fetches .*; or else"):
        check_at_hand(replace(small_run, data=DataConfig(source="openwebtext", tokenizer="byte")), "; or else")
    check_at_hand(replace(small_run, data=DataConfig(source="openwebtext", tokenizer="byte", path="some/file")), "")
    check_at_hand(replace(small_run, data=DataConfig(source="python", tokenizer="byte")), "")
    check_at_hand(small_run, "")
