"""Reading a tokenizer.json: a damaged or unsupported file is refused in one line."""

import copy
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import models, pre_tokenizers, trainers

from quillgpt.errors import DataError
from quillgpt.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 500) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
FAST = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refusal(path: Path) -> str:
    """The message with which a file is refused, one line that names it; or "loaded"."""
    try:
        load_tokenizer(path)
    except DataError as error:
        message = str(error)
        assert str(path) in message
        assert "\n" not in message
        return message
    return "loaded"


def not_refused(contents: Mapping[str, tuple[bytes, str]], path: Path) -> dict[str, str]:
    """The cases with another message than the given one, and that message."""
    found = {}
    for case, (content, expected) in contents.items():
        path.write_bytes(content)
        if expected not in (message := refusal(path)):
            found[case] = message
    return found


def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path: Path) -> None:
    contents = {
        "empty": (b"", "not readable as JSON"),
        "cut": (b'{"model": {"vocab": {"a"', "not readable as JSON"),
        "not UTF-8": (b'{"model": "\xff"}', "not readable as UTF-8"),
        "too deep": (b"[" * 200_000, "not readable as JSON"),
        "a list": (b"[]", "'model' is missing"),
        "no model": (b"{}", "'model' is missing"),
        "a model that is text": (b'{"model": "BPE"}', "'model' is missing or not an object"),
        "no vocabulary": (b'{"model": {"merges": []}}', "'vocab' is missing"),
        "no merges": (b'{"model": {"vocab": {}}}', "'merges' is missing"),
        "an html page": (b"<!DOCTYPE html><html></html>", "not readable as JSON"),
    }
    assert not_refused(contents, tmp_path / "tokenizer.json") == {}


CHANGES: dict[str, tuple[Callable[[dict], Any], str]] = {
    "a normalizer": (lambda file: file.update(normalizer={"type": "Lowercase"}), "normalizer is not GPT-2's"),
    "another split": (lambda file: file.update(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer is not"),
    "a space in front": (lambda file: file["pre_tokenizer"].update(add_prefix_space=True), "pre_tokenizer is not"),
    "no split": (lambda file: file["pre_tokenizer"].update(use_regex=False), "pre_tokenizer is not"),
    "a template": (lambda file: file.update(post_processor={"type": "TemplateProcessing"}), "post_processor is not"),
    "word pieces": (lambda file: file["model"].update(type="WordPiece"), "model type is not"),
    "dropout": (lambda file: file["model"].update(dropout=0.1), "dropout is not"),
    "an unknown token": (lambda file: file["model"].update(unk_token="<unk>"), "unk_token is not"),
    "a prefix": (lambda file: file["model"].update(continuing_subword_prefix="##"), "continuing_subword_prefix"),
    "no special tokens": (lambda file: file.update(added_tokens=[]), "special tokens are none"),
    "others": (lambda file: file["added_tokens"].append({"id": 9, "content": "<pad>"}), "<|endoftext|>, <pad>"),
    "a special id": (lambda file: file["added_tokens"][0].update(id="7"), "special tokens are"),
    "a text as id": (lambda file: file["model"]["vocab"].update(a="7"), "token 'a' has id '7'"),
    "true as id": (lambda file: file["model"]["vocab"].update(a=True), "token 'a' has id True"),
    "a gap in the ids": (lambda file: file["model"]["vocab"].update(a=9000), "token 'a' has id 9000"),
    "an id twice": (lambda file: file["model"]["vocab"].update(a=file["model"]["vocab"]["b"]), "the same id"),
    "a token twice": (lambda file: file["added_tokens"][0].update(id=3), "the same id"),
    "a missing byte": (lambda file: rename(file, "a", "aqa"), "1 of the 256 bytes have no token, such as b'a'"),
    "a token not in bytes": (lambda file: rename(file, "a", "狐"), "token 64 ('狐') is not encoded as GPT-2's"),
    "a merge too few": (lambda file: file["model"]["merges"].pop(), "merges are not those of its vocabulary"),
    "merges that are numbers": (lambda file: file["model"].update(merges=[1, None, {}]), "merges are not those"),
    "merges in another order": (lambda file: file["model"]["merges"].reverse(), "merges are not those"),
    "a token out of nothing": (lambda file: rename(file, "th", "qzw"), "not in the order of its merges"),
}


def rename(file: dict, token: str, new: str) -> None:
    file["model"]["vocab"] = {new if name == token else name: i for name, i in file["model"]["vocab"].items()}


@pytest.fixture(scope="module")
def document() -> dict:
    tokenizer = train_tokenizer("bpe", ["the thing that they thought there then"] * 3, 270)
    return json.loads(tokenizer.to_json())


def test_a_file_that_would_split_text_differently_is_refused(document: dict, tmp_path: Path) -> None:
    contents = {}
    for name, (change, message) in CHANGES.items():
        changed = copy.deepcopy(document)
        change(changed)
        contents[name] = json.dumps(changed).encode(), message
    assert not_refused(contents, tmp_path / "tokenizer.json") == {}


def test_a_character_file_with_an_unknown_token_is_refused(tmp_path: Path) -> None:
    contents = {}
    for key in ("x", "ab", "\ud800"):
        file = json.loads(train_tokenizer("character", ["hello"], 0).to_json())
        rename(file, "h", key)
        contents[key] = json.dumps(file).encode(), "not those of a character tokenizer"
    assert not_refused(contents, tmp_path / "tokenizer.json") == {}


@FAST
@given(value=JSON)
def test_any_other_json_is_refused(value: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    assert refusal(tmp_path / "tokenizer.json") != "loaded"


@FAST
@given(data=st.data(), value=JSON)
def test_a_file_with_one_wrong_value_loads_or_is_refused(
    data: st.DataObject, value: Any, document: dict, tmp_path: Path
) -> None:
    changed = copy.deepcopy(document)
    place: Any = changed
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    if refusal(tmp_path / "tokenizer.json") == "loaded":
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.decode(tokenizer.encode("the thing é")) == "the thing é"


def test_a_file_that_tokenizers_wrote_loads_with_equal_ids(tmp_path: Path) -> None:
    text = "the thing that they thought, there and then; isn't it?\n" * 3
    theirs = HuggingFaceTokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    special = ["<|endoftext|>"]  # the library gives it id 0
    theirs.train_from_iterator([text], trainers.BpeTrainer(vocab_size=290, special_tokens=special, **options))
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.end_of_text == 0
    assert ours.encode(text) == theirs.encode(text).ids


def test_gpt2s_file_in_hugging_faces_own_style_is_gpt2(gpt2: Tokenizer, tmp_path: Path) -> None:
    file = json.loads(gpt2.to_json())
    del file["model"]["type"], file["pre_tokenizer"]["use_regex"]
    file["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    file["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    assert load_tokenizer(tmp_path).name == "gpt2"


def test_what_is_not_a_file_is_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.json")
    assert "has no tokenizer.json" in refusal(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "tokenizer.json")  # opening it would wait
        assert "not a file" in refusal(tmp_path / "tokenizer.json")
