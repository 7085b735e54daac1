"""The tokenizer beside the weights: whichever file it is in, and only looked for when it is used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, GPT2Tokenizer

from quillgpt.checkpoint import load_model, open_model
from quillgpt.errors import DataError
from quillgpt.sample.generate import generate
from quillgpt.tokenizer import load_tokenizer, train_tokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT
from quillgpt.tokenizer.later import LaterTokenizer
from quillgpt.tokenizer.protocol import Tokenizer

Save = Callable[..., tuple[GPT2LMHeadModel, Path]]
TINY = {"n_embd": 8, "n_layer": 1, "n_head": 1}
TEXT = "Hello, naïve world 🙂\n\n  def f(x): return x+1"


@pytest.fixture
def without_a_vocabulary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which tiktoken has nothing and gets nothing."""
    import tiktoken

    def get_encoding(name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)


def test_a_model_without_tokenizer_files_loads_where_nothing_can_be_fetched(
    saved: Save, without_a_vocabulary: None
) -> None:
    _, directory = saved(vocab_size=50257, **TINY)
    model, tokenizer = load_model(directory)
    assert model(torch.tensor([[50256, 0]])).shape == (1, 2, 50257)
    assert open_model(directory).tokenizer_fingerprint == GPT2_FINGERPRINT
    for use in (lambda: tokenizer.vocab_size, lambda: tokenizer.encode("a"), lambda: tokenizer.decode([1])):
        with pytest.raises(DataError, match=r"GPT-2's vocabulary is not on this machine.*TIKTOKEN_CACHE_DIR"):
            use()


def test_fifty_thousand_tokens_without_files_are_gpt2s(saved: Save, gpt2_vocabulary: Path) -> None:
    _, directory = saved(vocab_size=50257, **TINY)
    model, tokenizer = load_model(directory)
    assert tokenizer.fingerprint == load_tokenizer("gpt2").fingerprint == GPT2_FINGERPRINT
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert isinstance(generate(model, tokenizer, "Hello", max_new_tokens=3)[0], str)


def test_another_vocabulary_without_files_is_refused_only_when_text_is_asked_for(saved: Save) -> None:
    _, directory = saved()
    model, tokenizer = load_model(directory)
    assert model(torch.tensor([[300]])).shape == (1, 1, 301)
    assert open_model(directory).tokenizer_fingerprint is None
    with pytest.raises(DataError, match=r"no tokenizer there.* 301 is not GPT-2's; put its tokenizer.json beside"):
        generate(model, tokenizer, "Hello")


def our_tokenizer(size: int) -> Tokenizer:
    return train_tokenizer("bpe", ["the cat sat on the mat; the cat sat\n" * 20, TEXT] * 3, size)


def test_the_tokenizer_json_beside_the_weights_is_read(saved: Save) -> None:
    tokenizer = our_tokenizer(270)
    _, directory = saved(vocab_size=270)
    (directory / "tokenizer.json").write_text(tokenizer.to_json())
    model, found = load_model(directory)
    assert found.fingerprint == tokenizer.fingerprint == open_model(directory).tokenizer_fingerprint
    assert found.encode(TEXT) == tokenizer.encode(TEXT)
    assert load_tokenizer(open_model(directory).tokenizer_name).fingerprint == tokenizer.fingerprint
    assert isinstance(generate(model, found, "the", max_new_tokens=3)[0], str)


def test_a_tokenizer_of_another_size_is_refused_when_it_is_used(saved: Save) -> None:
    _, directory = saved(vocab_size=280)
    (directory / "tokenizer.json").write_text(our_tokenizer(270).to_json())
    _, tokenizer = load_model(directory)
    with pytest.raises(DataError, match="its tokenizer has 270 tokens, the model 280"):
        tokenizer.encode("a")


def write_two_files(tokenizer: Tokenizer, directory: Path) -> None:
    """vocab.json and merges.txt as OpenAI's, from the tokenizer.json."""
    model = json.loads(tokenizer.to_json())["model"]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(model["merges"]) + "\n")


def test_vocab_json_and_merges_txt_alone_are_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = our_tokenizer(290)
    write_two_files(tokenizer, tmp_path)
    found = load_tokenizer(tmp_path)
    assert found.fingerprint == tokenizer.fingerprint
    assert found.encode(TEXT) == tokenizer.encode(TEXT)
    assert found.encode(TEXT) == GPT2Tokenizer.from_pretrained(tmp_path).encode(TEXT)


def copy_openais_files(cache: Path, directory: Path) -> None:
    """tiktoken caches the very two files that the hub's repository holds; their sizes tell which is which."""
    by_size = {path.stat().st_size: path for path in cache.iterdir()}
    shutil.copy(by_size[1_042_301], directory / "vocab.json")
    shutil.copy(by_size[456_318], directory / "merges.txt")


def test_openais_own_two_files_are_gpt2s_tokenizer(saved: Save, gpt2_vocabulary: Path) -> None:
    _, directory = saved(vocab_size=50257, **TINY)
    copy_openais_files(gpt2_vocabulary, directory)
    assert open_model(directory).tokenizer_fingerprint == GPT2_FINGERPRINT
    assert load_model(directory)[1].encode(TEXT) == load_tokenizer("gpt2").encode(TEXT)


def test_what_transformers_saves_beside_the_weights_is_gpt2s_tokenizer(saved: Save, gpt2_vocabulary: Path) -> None:
    _, directory = saved(vocab_size=50257, **TINY)
    copy_openais_files(gpt2_vocabulary, directory)
    theirs = GPT2Tokenizer.from_pretrained(directory)
    for name in ("vocab.json", "merges.txt"):
        (directory / name).unlink()
    theirs.save_pretrained(directory)
    assert (directory / "tokenizer.json").is_file()
    assert open_model(directory).tokenizer_fingerprint == GPT2_FINGERPRINT


BROKEN = {
    "no end of text": ('{"a": 0}', "#version\n", "no token <|endoftext|>"),
    "not JSON": ("{", "", "vocab.json: not readable"),
    "a list": ("[]", "", "no token"),
    "few bytes": ('{"a": 0, "<|endoftext|>": 1}', "", "bytes have no token"),
    "an id too far": ('{"a": 0, "<|endoftext|>": 5}', "", "has id 5"),
}


@pytest.mark.parametrize(("vocabulary", "merges", "message"), BROKEN.values(), ids=BROKEN)
def test_two_files_that_are_no_tokenizer_are_one_line(
    vocabulary: str, merges: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(DataError) as raised:
        load_tokenizer(tmp_path)
    assert message in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_merges_that_are_not_those_of_the_vocabulary_are_refused(tmp_path: Path) -> None:
    write_two_files(our_tokenizer(290), tmp_path)
    lines = (tmp_path / "merges.txt").read_text().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    (tmp_path / "merges.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match="merges are not those of its vocabulary"):
        load_tokenizer(tmp_path)


def test_a_directory_without_any_tokenizer_file_is_told_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_later_tokenizer_is_the_tokenizer() -> None:
    made = []

    def create() -> Tokenizer:
        made.append(1)
        return load_tokenizer("byte")

    later, now = LaterTokenizer(create), load_tokenizer("byte")
    assert made == []
    for name in ("name", "vocab_size", "end_of_text", "fingerprint"):
        assert getattr(later, name) == getattr(now, name)
    assert later.encode(f"a<|endoftext|>{TEXT}", allow_special=True) == now.encode(
        f"a<|endoftext|>{TEXT}", allow_special=True
    )
    assert later.encode_array(TEXT).tolist() == now.encode_array(TEXT).tolist()
    assert later.decode([97, 195]) == now.decode([97, 195])
    assert later.decode_bytes([195]) == b"\xc3"
    assert later.token_bytes(97) == b"a"
    assert later.to_json() == now.to_json()
    assert made == [1]
    members = {name for name in vars(Tokenizer) if not name.startswith("_")}
    assert members == {name for name in vars(LaterTokenizer) if not name.startswith("_")}
