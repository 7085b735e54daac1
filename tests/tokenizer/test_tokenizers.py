"""Claims that hold for every entry of the menu."""

import hashlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from transformers import AutoTokenizer

from quillgpt.errors import ConfigError, DataError
from quillgpt.tokenizer import TOKENIZERS, Tokenizer, bytes_per_token, load_tokenizer, train_tokenizer
from quillgpt.tokenizer.tokenizer_json import config_json

MARK = "<|endoftext|>"
SNIPPETS = [
    "don't",
    "I'LL",
    "  \n\n x",
    "\r\n",
    "\t\t",
    " 123",
    "naïve",
    "狐狸",
    "👩‍👩‍👧",
    "e\u0301",
    "\u3000\x85\x1c ",
    MARK,
    "\0",
]
TEXTS = st.lists(st.text() | st.sampled_from(SNIPPETS), max_size=8).map("".join)
FAST = settings(max_examples=60, deadline=None)


@FAST
@given(text=TEXTS)
def test_decode_undoes_encode_on_arbitrary_unicode(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@FAST
@given(text=TEXTS)
def test_the_tokens_bytes_are_the_texts_utf8_bytes(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)

    assert b"".join(map(tokenizer.token_bytes, tokens)) == text.encode() == tokenizer.decode_bytes(tokens)


@FAST
@given(text=TEXTS)
def test_encode_array_gives_the_same_tokens(tokenizer: Tokenizer, text: str) -> None:
    array = tokenizer.encode_array(text)

    assert array.dtype == np.uint32
    assert array.tolist() == tokenizer.encode(text)


def test_hugging_face_tokenizers_loads_the_file_with_equal_ids(tokenizer: Tokenizer) -> None:
    theirs = HuggingFaceTokenizer.from_str(tokenizer.to_json())

    @FAST
    @given(text=TEXTS.map(lambda text: text.replace(MARK, "")))
    def ids_are_equal(text: str) -> None:
        assert theirs.encode(text).ids == tokenizer.encode(text)

    ids_are_equal()
    assert theirs.get_vocab_size() == tokenizer.vocab_size


def test_transformers_auto_tokenizer_loads_the_file_with_equal_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(config_json(), encoding="utf-8")
    text = "".join(SNIPPETS)

    theirs = AutoTokenizer.from_pretrained(tmp_path)

    assert theirs(text, split_special_tokens=True).input_ids == tokenizer.encode(text)
    assert theirs(text).input_ids == tokenizer.encode(text, allow_special=True)
    assert theirs.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text
    assert (len(theirs), theirs.eos_token_id) == (tokenizer.vocab_size, tokenizer.end_of_text)


def test_end_of_text_in_a_text_is_text(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(f"a{MARK}b")

    assert tokenizer.end_of_text not in tokens
    assert tokenizer.decode(tokens) == f"a{MARK}b"


def test_end_of_text_is_a_token_when_it_is_asked_for(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(f"{MARK}a {MARK}{MARK}b", allow_special=True)

    end = tokenizer.end_of_text
    assert tokens == [end, *tokenizer.encode("a "), end, end, *tokenizer.encode("b")]


def test_end_of_text_is_the_last_token_and_has_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1
    assert tokenizer.token_bytes(tokenizer.end_of_text) == b""


def test_bytes_per_token_counts_each_tokens_bytes(tokenizer: Tokenizer) -> None:
    text = "naïve 狐狸, it isn't"

    counts = bytes_per_token(tokenizer)

    assert counts.shape == (tokenizer.vocab_size,)
    assert counts[tokenizer.encode_array(text)].sum() == len(text.encode())
    assert np.flatnonzero(counts == 0).tolist() == [tokenizer.end_of_text]


def test_a_saved_tokenizer_loads_as_the_same_one_without_a_network(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    monkeypatch.setattr("tiktoken.get_encoding", None)

    loaded = load_tokenizer(tmp_path)

    assert loaded.name == tokenizer.name
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.to_json() == tokenizer.to_json()
    assert loaded.encode("".join(SNIPPETS)) == tokenizer.encode("".join(SNIPPETS))
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).fingerprint == tokenizer.fingerprint


def test_a_pickled_tokenizer_is_the_same_in_another_process(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))

    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode("naïve 狐狸") == tokenizer.encode("naïve 狐狸")


def test_the_fingerprint_is_a_sha256(tokenizer: Tokenizer) -> None:
    assert len(bytes.fromhex(tokenizer.fingerprint)) == hashlib.sha256().digest_size


def test_other_texts_kinds_and_sizes_have_other_fingerprints() -> None:
    trained = [("bpe", "abcabc", 258), ("bpe", "bcdbcd", 258), ("bpe", "abcabc", 257)]
    trained += [("character", "abc", 0), ("character", "abcd", 0)]

    fingerprints = {train_tokenizer(name, [text], size).fingerprint for name, text, size in trained}

    assert len(fingerprints | {load_tokenizer("byte").fingerprint}) == len(trained) + 1


@pytest.mark.parametrize("text", ["ok \ud83d", "\udc00", "🙂\ud83d\ude42"])
def test_half_a_character_is_refused_and_its_place_is_named(tokenizer: Tokenizer, text: str) -> None:
    place = next(i for i, x in enumerate(text) if 0xD800 <= ord(x) < 0xE000)

    with pytest.raises(DataError, match=f"U\\+{ord(text[place]):04X} at character {place}"):
        tokenizer.encode(text)


@pytest.mark.parametrize("wrong", [-1, None])
def test_a_token_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, wrong: int | None) -> None:
    token = tokenizer.vocab_size if wrong is None else wrong

    with pytest.raises(ValueError, match=re.escape(f"token {token} is outside the vocabulary")):
        tokenizer.decode([0, token, 0])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.token_bytes(token)


def test_half_a_character_in_the_tokens_is_shown_as_replacement(tokenizer: Tokenizer) -> None:
    unknown = tokenizer.encode("\U0010fffd")  # in no vocabulary: several tokens

    assert len(unknown) > 1
    assert tokenizer.decode(unknown[:-1]) == "�"


def test_arrays_are_decoded_too(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode_array("naïve 狐狸").astype(np.uint16)) == "naïve 狐狸"
    assert tokenizer.decode(np.array([], dtype=np.uint16)) == ""


@pytest.mark.parametrize("piece", ["a", " ", "\n", "é", "!?", "<|endoftext|>", "ACGTTGAC", "\u3000"])
def test_a_long_repetitive_line_is_encoded_in_linear_time(tokenizer: Tokenizer, piece: str) -> None:
    text = piece * 60_000 + "x"  # quadratic code takes minutes here

    assert tokenizer.decode_bytes(tokenizer.encode_array(text)) == text.encode()


@pytest.mark.parametrize("name", [name for name, kind in TOKENIZERS.items() if kind.learns])
def test_the_same_texts_train_the_same_tokenizer(name: str) -> None:
    texts = [f"{word} {word[::-1]} {word * 2} é{i}" for i, word in enumerate(["tokens", "merge", "into", "words"] * 50)]

    first, second = (train_tokenizer(name, iter(texts), 300) for _ in range(2))

    assert first.to_json() == second.to_json()


@pytest.mark.parametrize("name", [name for name, kind in TOKENIZERS.items() if kind.learns])
def test_a_tokenizer_that_learns_is_not_loaded_by_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"tokenizer {name} learns from text.*quill tokenizer train"):
        load_tokenizer(name)


@pytest.mark.parametrize("name", [name for name, kind in TOKENIZERS.items() if kind.learns])
def test_half_a_character_in_training_text_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"U\+D83D"):
        train_tokenizer(name, ["all is well", "is it? \ud83d"], 300)


@pytest.mark.parametrize("name", [name for name, kind in TOKENIZERS.items() if not kind.learns])
def test_a_ready_made_tokenizer_cannot_be_trained(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*ready-made.*bpe, character"):
        train_tokenizer(name, ["text"], 300)


def test_a_misspelt_name_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"gtp2.*did you mean gpt2\?.*byte"):
        load_tokenizer("gtp2")
