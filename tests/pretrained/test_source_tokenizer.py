"""The tokenizer of a model, whichever file it is in; it is only read when it is used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, GPT2Tokenizer

from quillgpt.checkpoint import load_model, open_model
from quillgpt.errors import DataError
from quillgpt.sample.engine import generate
from quillgpt.tokenizer import load_tokenizer, train_tokenizer
from quillgpt.tokenizer.base import LazyTokenizer, Tokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT

Save = Callable[..., tuple[GPT2LMHeadModel, Path]]
TINY = {"n_embd": 8, "n_layer": 1, "n_head": 1}
TEXT = "Hello, naïve world 🙂\n\n  def f(x): return x+1"


def test_a_model_loads_where_gpt2s_vocabulary_cannot_be_fetched(saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    def get_encoding(name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    _, directory = saved(vocab_size=50257, **TINY)
    model, tokenizer = load_model(directory)
    assert model(torch.tensor([[50256, 0]])).shape == (1, 2, 50257)
    assert open_model(directory).tokenizer_fingerprint == GPT2_FINGERPRINT
    for use in (lambda: tokenizer.vocab_size, lambda: tokenizer.encode("a"), lambda: tokenizer.decode([1])):
        with pytest.raises(DataError, match=r"GPT-2's vocabulary is not on this machine.*TIKTOKEN_CACHE_DIR"):
            use()


def our_tokenizer(size: int) -> Tokenizer:
    return train_tokenizer("bpe", ["the cat sat on the mat; the cat sat\n" * 20, TEXT] * 3, size)


def test_a_tokenizer_json_next_to_the_weights_is_read(saved: Save) -> None:
    tokenizer = our_tokenizer(270)
    _, directory = saved(vocab_size=270)
    (directory / "tokenizer.json").write_text(tokenizer.to_json())
    model, found = load_model(directory)
    assert found.fingerprint == tokenizer.fingerprint == open_model(directory).tokenizer_fingerprint
    assert found.encode(TEXT) == tokenizer.encode(TEXT)
    assert load_tokenizer(open_model(directory).tokenizer_name).fingerprint == tokenizer.fingerprint
    assert isinstance(generate(model, found, "the", max_new_tokens=3)[0], str)


def test_a_missing_tokenizer_or_one_of_another_size_is_refused_when_it_is_used(saved: Save) -> None:
    _, directory = saved()
    model, tokenizer = load_model(directory)
    assert model(torch.tensor([[300]])).shape == (1, 1, 301)
    assert open_model(directory).tokenizer_fingerprint is None
    with pytest.raises(DataError, match=r"no tokenizer there.* 301 is not GPT-2's; put its tokenizer.json next to"):
        generate(model, tokenizer, "Hello")
    (directory / "tokenizer.json").write_text(our_tokenizer(270).to_json())
    _, tokenizer = load_model(directory)
    with pytest.raises(DataError, match="its tokenizer has 270 tokens, the model 301"):
        tokenizer.encode("a")


def write_two_files(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the tokenizer as vocab.json and merges.txt, like OpenAI's."""
    model = json.loads(tokenizer.to_json())["model"]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(model["merges"]) + "\n")


def test_vocab_json_and_merges_txt_alone_are_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = our_tokenizer(290)
    write_two_files(tokenizer, tmp_path)
    found = load_tokenizer(tmp_path)
    assert found.fingerprint == tokenizer.fingerprint
    assert found.encode(TEXT) == tokenizer.encode(TEXT) == GPT2Tokenizer.from_pretrained(tmp_path).encode(TEXT)


def test_gpt2s_tokenizer_is_known_by_its_size_and_in_both_formats(saved: Save, gpt2_vocabulary: Path) -> None:
    _, directory = saved(vocab_size=50257, **TINY)
    gpt2, (model, tokenizer) = load_tokenizer("gpt2"), load_model(directory)  # without files
    assert tokenizer.fingerprint == gpt2.fingerprint == GPT2_FINGERPRINT
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert isinstance(generate(model, tokenizer, "Hello", max_new_tokens=3)[0], str)
    by_size = {path.stat().st_size: path for path in gpt2_vocabulary.iterdir()}  # tiktoken caches OpenAI's two files
    shutil.copy(by_size[1_042_301], directory / "vocab.json")
    shutil.copy(by_size[456_318], directory / "merges.txt")
    assert open_model(directory).tokenizer_fingerprint == GPT2_FINGERPRINT
    assert load_model(directory)[1].encode(TEXT) == gpt2.encode(TEXT)
    theirs = GPT2Tokenizer.from_pretrained(directory)
    for name in ("vocab.json", "merges.txt"):
        (directory / name).unlink()
    theirs.save_pretrained(directory)
    assert (directory / "tokenizer.json").is_file()
    assert open_model(directory).tokenizer_fingerprint == GPT2_FINGERPRINT


def test_two_files_that_are_not_a_tokenizer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    for vocabulary, merges, message in (
        ('{"a": 0}', "#version\n", "no token <|endoftext|>"),
        ("{", "", "vocab.json: not readable"),
        ("[]", "", "no token"),
        ('{"a": 0, "<|endoftext|>": 1}', "", "bytes have no token"),
        ('{"a": 0, "<|endoftext|>": 5}', "", "has id 5"),
    ):
        (tmp_path / "vocab.json").write_text(vocabulary)
        (tmp_path / "merges.txt").write_text(merges)
        with pytest.raises(DataError) as raised:
            load_tokenizer(tmp_path)
        assert message in str(raised.value)
        assert str(tmp_path) in str(raised.value)
    write_two_files(our_tokenizer(290), tmp_path)
    lines = (tmp_path / "merges.txt").read_text().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    (tmp_path / "merges.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match="merges are not those of its vocabulary"):
        load_tokenizer(tmp_path)


def test_a_lazy_tokenizer_equals_the_tokenizer_and_is_made_once() -> None:
    made = []

    def create() -> Tokenizer:
        made.append(1)
        return load_tokenizer("byte")

    lazy, byte = LazyTokenizer(create), load_tokenizer("byte")
    assert made == []
    for name in ("name", "vocab_size", "end_of_text", "fingerprint"):
        assert getattr(lazy, name) == getattr(byte, name)
    special = f"a<|endoftext|>{TEXT}"
    assert lazy.encode(special, allow_special=True) == byte.encode(special, allow_special=True)
    assert lazy.encode_array(TEXT).tolist() == byte.encode_array(TEXT).tolist()
    assert lazy.decode([97, 195]) == byte.decode([97, 195])
    assert (lazy.decode_bytes([195]), lazy.token_bytes(97)) == (b"\xc3", b"a")
    assert lazy.to_json() == byte.to_json()
    assert made == [1]
