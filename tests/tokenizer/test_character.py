"""The character tokenizer: nanoGPT's ids, and bytes for characters that the training text does not have."""

from pathlib import Path

import pytest

from quillgpt.errors import DataError
from quillgpt.tokenizer import train_tokenizer

SHAKESPEARE = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"


def test_ids_of_shakespeare_are_nanogpts() -> None:
    if not SHAKESPEARE.is_file():
        pytest.skip("no copy of Shakespeare on this machine")
    text = SHAKESPEARE.read_text(encoding="utf-8")
    token_of = {character: i for i, character in enumerate(sorted(set(text)))}
    tokenizer = train_tokenizer("character", [text], 0)
    assert len(token_of) == 65
    assert tokenizer.encode(text) == [token_of[character] for character in text]
    assert tokenizer.vocab_size == 257


def test_the_vocabulary_is_characters_then_remaining_bytes_then_end_of_text() -> None:
    tokenizer = train_tokenizer("character", ["bé", "a狐"], 0)
    remaining = [bytes([value]) for value in range(256) if value not in b"ab"]
    expected = [b"a", b"b", "é".encode(), "狐".encode(), *remaining, b""]
    assert [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)] == expected


def test_an_unknown_character_is_its_bytes_in_a_text_of_any_number_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer("character", ["bé", "a"], 0)
    tokens = tokenizer.encode("aéü狸b" * 7)
    expected = [b"a", "é".encode(), b"\xc3", b"\xbc", b"\xe7", b"\x8b", b"\xb8", b"b"]
    assert list(map(tokenizer.token_bytes, tokens)) == expected * 7
    monkeypatch.setattr("quillgpt.tokenizer.character.CHUNK_CHARACTERS", 4)
    assert tokenizer.encode("aéü狸b" * 7) == tokens


def test_training_on_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer("character", ["", ""], 0)
