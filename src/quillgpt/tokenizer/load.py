"""Read a tokenizer.json, or the vocab.json and merges.txt in which OpenAI published GPT-2's tokenizer.

Files of quill, of GPT-2, and of other byte-level BPEs built like GPT-2's are read; anything else is a `DataError`.
"""

import json
from pathlib import Path
from typing import Any

from quillgpt.errors import DataError
from quillgpt.tokenizer.base import END_OF_TEXT, Tokenizer
from quillgpt.tokenizer.byte import VOCABULARY as BYTES
from quillgpt.tokenizer.byte import ByteTokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT, ByteLevelBPE, merges_in_order
from quillgpt.tokenizer.character import CharacterTokenizer
from quillgpt.tokenizer.tokenizer_json import BYTE_LEVEL, BYTE_OF_CHARACTER, readable

FILE_NAME = "tokenizer.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
REMEDY = "make a new one with `quill tokenizer train`"
MUST_BE_UNSET = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")


def has_vocabulary_files(directory: Path) -> bool:
    """Whether vocab.json and merges.txt are there."""
    return (directory / VOCABULARY).is_file() and (directory / MERGES).is_file()


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, or of a directory; its name is that of the menu's entry it equals."""
    if path.is_dir() and not (path / FILE_NAME).exists() and has_vocabulary_files(path):
        path, document = path / VOCABULARY, _document_of_two_files(path)
    else:
        path = path / FILE_NAME if path.is_dir() else path
        document = _read_json(path)
    model = _entry(path, document, "model", dict)
    vocabulary, merges = _entry(path, model, "vocab", dict), _entry(path, model, "merges", list)
    has_fallback = model.get("byte_fallback", False) is True
    _refuse_other_rules(path, document, model, has_fallback)
    end_of_text = _end_of_text(path, document)
    names = _names_by_id(path, vocabulary, end_of_text)
    if has_fallback:
        return _character_tokenizer(path, names, merges)
    tokens = _tokens(path, names, end_of_text)
    return ByteTokenizer() if tokens == BYTES and not merges else _byte_level(path, tokens, end_of_text, merges)


def _document_of_two_files(directory: Path) -> dict[str, Any]:
    """The tokenizer.json that is equivalent to the two files: end of text is the only special token."""
    path = directory / VOCABULARY
    ids, lines = _read_json(path), _read_text(directory / MERGES).split("\n")
    if not isinstance(ids, dict) or END_OF_TEXT not in ids:
        raise DataError(f"{path}: no token {END_OF_TEXT} (must be tokens and their ids, including this one)")
    return {
        "added_tokens": [{"content": END_OF_TEXT, "id": ids[END_OF_TEXT]}],
        "pre_tokenizer": BYTE_LEVEL,
        "model": {"vocab": ids, "merges": [line for line in lines[lines[0].startswith("#version") :] if line]},
    }


def _read_json(path: Path) -> Any:
    text = _read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}; {REMEDY}") from None


def _read_text(path: Path) -> str:
    if not path.exists():
        raise DataError(f"{path}: no such file; {REMEDY}")
    if not path.is_file():
        raise DataError(f"{path} is not a file (must be a {FILE_NAME})")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: not readable as UTF-8: {error}; {REMEDY}") from None


def _entry(path: Path, mapping: Any, name: str, kind: type) -> Any:
    if not isinstance(mapping, dict) or type(mapping.get(name)) is not kind:
        expected = {dict: "an object", list: "a list"}[kind]
        raise DataError(f"{path} is not a tokenizer.json: {name!r} is missing or not {expected}; {REMEDY}")
    return mapping[name]


def _refuse_other_rules(path: Path, document: dict, model: dict, has_fallback: bool) -> None:
    """Refuse a file if we would split a text differently from the library that wrote it."""
    split = document.get("pre_tokenizer")
    if has_fallback:
        is_ours = split is None
    else:
        split = split if isinstance(split, dict) else {}
        is_ours = split.get("type") == "ByteLevel" and not split.get("add_prefix_space", True)
        is_ours = is_ours and split.get("use_regex", True) is True
    rules = {
        "pre_tokenizer": is_ours,
        "normalizer": document.get("normalizer") is None,
        "post_processor": _adds_nothing(document.get("post_processor") or {}),
        "model type": model.get("type", "BPE") == "BPE",
        **{name: not model.get(name) for name in MUST_BE_UNSET},
    }
    for name, is_supported in rules.items():
        if not is_supported:
            raise DataError(f"{path}: its {name} is not GPT-2's, the only kind that quill reads; {REMEDY}")


def _adds_nothing(post_processor: Any) -> bool:
    """Whether it adds no token: GPT-2's, or a template of no special tokens, as transformers writes."""
    if not isinstance(post_processor, dict):
        return False
    kind = post_processor.get("type", "ByteLevel")
    return kind == "ByteLevel" or (kind == "TemplateProcessing" and post_processor.get("special_tokens") == {})


def _end_of_text(path: Path, document: dict) -> int:
    added = _entry(path, document, "added_tokens", list)
    contents = [token.get("content") if isinstance(token, dict) else token for token in added]
    if contents != [END_OF_TEXT] or type(added[0].get("id")) is not int:
        found = ", ".join(map(str, contents[:5])) or "none"
        raise DataError(f"{path}: its special tokens are {found} (must be {END_OF_TEXT} with its id, and no other)")
    return added[0]["id"]


def _names_by_id(path: Path, vocabulary: dict, end_of_text: int) -> list[str]:
    ids = {END_OF_TEXT: end_of_text} | vocabulary
    for name, i in ids.items():
        if type(i) is not int or not 0 <= i < len(ids):
            raise DataError(f"{path}: token {name!r} has id {i!r} (must be an integer below {len(ids):,}); {REMEDY}")
    if len(set(ids.values())) != len(ids) or ids[END_OF_TEXT] != end_of_text:
        raise DataError(f"{path}: two of its tokens have the same id; {REMEDY}")
    return sorted(ids, key=ids.__getitem__)


def _tokens(path: Path, names: list[str], end_of_text: int) -> list[bytes]:
    tokens = []
    for i, name in enumerate(names):
        if i != end_of_text and (not name or not set(name) <= BYTE_OF_CHARACTER.keys()):
            raise DataError(f"{path}: token {i} ({name!r}) is not encoded as GPT-2's, one character a byte; {REMEDY}")
        tokens.append(b"" if i == end_of_text else bytes([BYTE_OF_CHARACTER[character] for character in name]))
    missing = {bytes([value]) for value in range(256)} - set(tokens)
    if missing:
        found = f"{len(missing)} of the 256 bytes have no token, such as {min(missing)!r}"
        raise DataError(f"{path}: {found}; {REMEDY}")
    return tokens


def _byte_level(path: Path, tokens: list[bytes], end_of_text: int, merges: list) -> ByteLevelBPE:
    tokenizer = ByteLevelBPE(tokens, end_of_text)
    if tokenizer.fingerprint == GPT2_FINGERPRINT:  # its merges are known; checking them takes a second
        return tokenizer
    try:
        expected = [[readable(left), readable(right)] for left, right in merges_in_order(tokens)]
    except ValueError as error:
        raise DataError(f"{path}: its vocabulary is not in the order of its merges: {error}; {REMEDY}") from None
    if [merge.split(" ") if isinstance(merge, str) else merge for merge in merges] != expected:
        raise DataError(f"{path}: its merges are not those of its vocabulary; {REMEDY}")
    return tokenizer


def _character_tokenizer(path: Path, names: list[str], merges: list) -> CharacterTokenizer:
    characters = [name for name in names if len(name) == 1]
    has_surrogate = any("\ud800" <= character <= "\udfff" for character in characters)
    tokenizer = CharacterTokenizer([] if has_surrogate else characters)
    if merges or list(json.loads(tokenizer.to_json())["model"]["vocab"]) != names:
        expected = "the sorted characters, the remaining bytes, end of text"
        raise DataError(f"{path}: its tokens are not those of a character tokenizer ({expected}); {REMEDY}")
    return tokenizer
