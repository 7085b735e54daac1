"""Claims that hold for every entry of the menu."""

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
    *("don't", "I'LL", "  \n\n x", "\r\n", "\t\t", " 123", "naïve", "狐狸", "👩‍👩‍👧", "e\u0301", "\u3000\x85\x1c "),
    *(MARK, "\0"),
]
TEXTS = st.lists(st.text() | st.sampled_from(SNIPPETS), max_size=8).map("".join)
FAST = settings(max_examples=60, deadline=None)
LEARNS = [name for name, kind in TOKENIZERS.items() if kind.learns]


@FAST
@given(text=TEXTS)
def test_every_text_is_encoded_without_loss(tokenizer: Tokenizer, text: str) -> None:
    tokens, array = tokenizer.encode(text), tokenizer.encode_array(text)
    assert tokenizer.decode(tokens) == text
    assert b"".join(map(tokenizer.token_bytes, tokens)) == text.encode() == tokenizer.decode_bytes(tokens)
    assert array.dtype == np.uint32
    assert array.tolist() == tokens


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
    text, theirs = "".join(SNIPPETS), AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text, split_special_tokens=True).input_ids == tokenizer.encode(text)
    assert theirs(text).input_ids == tokenizer.encode(text, allow_special=True)
    assert theirs.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text
    assert (len(theirs), theirs.eos_token_id) == (tokenizer.vocab_size, tokenizer.end_of_text)


def test_end_of_text_is_the_last_token_and_its_characters_are_text_unless_allowed(tokenizer: Tokenizer) -> None:
    end, a, b = tokenizer.end_of_text, tokenizer.encode("a "), tokenizer.encode("b")
    assert end == tokenizer.vocab_size - 1
    assert tokenizer.token_bytes(end) == b""
    assert end not in tokenizer.encode(f"a{MARK}b")
    assert tokenizer.encode(f"{MARK}a {MARK}{MARK}b", allow_special=True) == [end, *a, end, end, *b]


def test_bytes_per_token_counts_the_bytes_of_each_token(tokenizer: Tokenizer) -> None:
    text, counts = "naïve 狐狸, it isn't", bytes_per_token(tokenizer)
    assert counts.shape == (tokenizer.vocab_size,)
    assert counts[tokenizer.encode_array(text)].sum() == len(text.encode())
    assert np.flatnonzero(counts == 0).tolist() == [tokenizer.end_of_text]


def test_a_saved_or_pickled_tokenizer_is_the_same_one_without_a_network(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    monkeypatch.setattr("tiktoken.get_encoding", None)
    for loaded in (load_tokenizer(str(tmp_path / "tokenizer.json")), pickle.loads(pickle.dumps(tokenizer))):
        assert (loaded.name, loaded.fingerprint) == (tokenizer.name, tokenizer.fingerprint)
        assert loaded.encode("".join(SNIPPETS)) == tokenizer.encode("".join(SNIPPETS))
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    if tokenizer.name != "gpt2":  # its merges take half a second
        assert load_tokenizer(tmp_path).to_json() == tokenizer.to_json()


def test_the_fingerprint_is_a_sha256_of_kind_and_vocabulary() -> None:
    trained = [("bpe", "abcabc", 258), ("bpe", "bcdbcd", 258), ("bpe", "abcabc", 257)]
    trained += [("character", "abc", 0), ("character", "abcd", 0)]
    fingerprints = {train_tokenizer(name, [text], size).fingerprint for name, text, size in trained}
    fingerprints.add(load_tokenizer("byte").fingerprint)
    assert len(fingerprints) == len(trained) + 1
    assert {len(bytes.fromhex(fingerprint)) for fingerprint in fingerprints} == {32}


def test_a_lone_surrogate_is_refused_and_its_place_is_named(tokenizer: Tokenizer) -> None:
    for text, found in {
        "ok \ud83d": "U+D83D at character 3",
        "\udc00": "U+DC00 at character 0",
        "🙂\ud83d\ude42": "U+D83D at character 1",
    }.items():
        with pytest.raises(DataError, match=re.escape(found)):
            tokenizer.encode(text)


def test_a_token_outside_the_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    for token in (-1, tokenizer.vocab_size):
        for read in (
            lambda token=token: tokenizer.decode([0, token, 0]),
            lambda token=token: tokenizer.token_bytes(token),
        ):
            with pytest.raises(ValueError, match=re.escape(f"token {token} is outside the vocabulary of ")):
                read()


def test_lists_and_arrays_of_parts_of_characters_are_decoded(tokenizer: Tokenizer) -> None:
    unknown = tokenizer.encode("\U0010fffd")  # in no vocabulary: several tokens
    assert len(unknown) > 1
    assert tokenizer.decode(unknown[:-1]) == "�"
    assert tokenizer.decode(tokenizer.encode_array("naïve 狐狸").astype(np.uint16)) == "naïve 狐狸"
    assert tokenizer.decode(np.array([], dtype=np.uint16)) == ""


def test_a_long_repetitive_line_is_encoded_in_linear_time(tokenizer: Tokenizer) -> None:
    for piece in ("a", " ", "\n", "é", "!?", MARK, "ACGTTGAC", "\u3000"):
        text = piece * 30_000 + "x"  # quadratic code takes minutes
        assert tokenizer.decode_bytes(tokenizer.encode_array(text)) == text.encode()


def test_the_same_texts_train_the_same_tokenizer() -> None:
    texts = [f"{word} {word[::-1]} {word * 2} é{i}" for i, word in enumerate(["tokens", "merge", "into", "words"] * 50)]
    for name in LEARNS:
        first, second = (train_tokenizer(name, iter(texts), 300) for _ in range(2))
        assert first.to_json() == second.to_json(), name


def test_a_lone_surrogate_in_training_text_is_refused() -> None:
    for name in LEARNS:
        with pytest.raises(DataError, match=r"U\+D83D"):
            train_tokenizer(name, ["all is well", "is it? \ud83d"], 300)


def test_a_tokenizer_that_learns_is_trained_and_a_ready_made_one_is_loaded_by_name() -> None:
    for name in TOKENIZERS:
        message = "is trained on text.*quill tokenizer train" if name in LEARNS else "ready-made.*bpe, character$"
        with pytest.raises(ConfigError, match=f"{name}.*{message}"):
            load_tokenizer(name) if name in LEARNS else train_tokenizer(name, ["text"], 300)
    with pytest.raises(ConfigError, match=r"gtp2.*did you mean gpt2\?.*byte"):
        load_tokenizer("gtp2")
