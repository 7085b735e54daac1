"""GPT-2's vocabulary and the rule by which byte-level BPE merges, against tiktoken and OpenAI's files."""

import os
import re
from pathlib import Path

import pytest
import requests
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from quillgpt.errors import DataError
from quillgpt.tokenizer import Tokenizer, load_tokenizer
from quillgpt.tokenizer.byte_level import WHITE_SPACE, ByteLevelBPE, merge_order, merges_in_order, split_long_space
from quillgpt.tokenizer.tokenizer_json import readable

VOCAB_BPE = "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"  # tiktoken's name for OpenAI's vocab.bpe in its cache
BYTES = [bytes([value]) for value in range(256)]


def test_hello_world_has_gpt2s_published_ids(gpt2: Tokenizer) -> None:
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (gpt2.name, gpt2.vocab_size, gpt2.end_of_text) == ("gpt2", 50257, 50256)


@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.text("ab' stlven1\n\t.é", max_size=200))
def test_gpt2_ids_equal_tiktokens(gpt2: Tokenizer, text: str) -> None:
    assert gpt2.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)


def test_merges_rebuilt_from_gpt2s_ids_are_openais_list(gpt2: Tokenizer) -> None:
    published = Path(os.environ["TIKTOKEN_CACHE_DIR"]) / VOCAB_BPE
    if not published.is_file():
        pytest.skip("OpenAI's vocab.bpe is not in TIKTOKEN_CACHE_DIR")
    merges = merges_in_order([gpt2.token_bytes(token) for token in range(gpt2.vocab_size)])
    lines = published.read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
    assert [f"{readable(left)} {readable(right)}" for left, right in merges] == lines


@pytest.fixture(scope="module")
def ranks(gpt2: Tokenizer) -> dict[bytes, int]:
    return {gpt2.token_bytes(token): token for token in range(gpt2.end_of_text)}


@settings(max_examples=200, deadline=None)
@given(word=st.text("abcdeht", min_size=1, max_size=30))
def test_the_plain_merge_rule_equals_tiktoken(gpt2: Tokenizer, ranks: dict[bytes, int], word: str) -> None:
    parts = merge_order(word.encode(), ranks, below=len(ranks))
    assert [ranks[part] for part in parts] == gpt2.encode(word)


def test_an_unreachable_vocabulary_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(address: str) -> bytes:
        raise requests.exceptions.ConnectionError(f"Failed to resolve {address}\nafter a long story")

    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setattr("tiktoken.load.read_file", no_network)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"^[^\n]*cannot be fetched[^\n]*set TIKTOKEN_CACHE_DIR[^\n]*$"):
        load_tokenizer("gpt2")


def test_a_run_of_white_space_beyond_the_stack_of_the_split_keeps_its_ids(gpt2: Tokenizer) -> None:
    space, space_x = gpt2.encode(" ")[0], gpt2.encode(" x")[0]
    assert gpt2.encode(f"a{' ' * 1_000_000}x") == [gpt2.encode("a")[0], *[space] * 999_999, space_x]


@settings(max_examples=50, deadline=None)
@given(
    before=st.text(max_size=3),
    run=st.text("\t\n\r \x85\xa0\u2003\u3000\x1c\x1f", min_size=1, max_size=5),
    after=st.text(max_size=3),
)
def test_splitting_before_the_end_of_white_space_keeps_the_ids(
    bpe: Tokenizer, before: str, run: str, after: str
) -> None:
    text = before + run * 1000 + after  # long enough to be split, short enough for tiktoken without
    parts = list(split_long_space(text))
    assert "".join(parts) == text
    assert [token for part in parts for token in bpe.encode(part)] == bpe.encode(text)


def test_the_white_space_of_the_split_is_unicodes() -> None:
    listed = [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
    assert re.findall(f"[{WHITE_SPACE}]", "".join(map(chr, range(0x110000)))) == list(map(chr, listed))


def test_a_vocabulary_whose_merges_are_not_in_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r"token 256 \(b'abc'\)"):
        merges_in_order([*BYTES, b"abc", b"ab", b""])


def test_end_of_text_may_have_any_id() -> None:
    tokenizer = ByteLevelBPE([b"", *BYTES, b"ab"], end_of_text=0)
    assert tokenizer.encode("<|endoftext|>ab", allow_special=True) == [0, 257]
    assert '"id": 0' in tokenizer.to_json()
