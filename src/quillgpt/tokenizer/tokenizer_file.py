"""Read a tokenizer.json, or vocab.json and merges.txt.

Ours, GPT-2's, or another byte-level BPE in GPT-2's manner; anything else is a `DataError`.
"""

import json
from pathlib import Path
from typing import Any

from quillgpt.errors import DataError
from quillgpt.tokenizer.byte import VOCABULARY as BYTES
from quillgpt.tokenizer.byte import ByteTokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT, ByteLevelBPE, merges_in_order
from quillgpt.tokenizer.character import CharacterTokenizer
from quillgpt.tokenizer.protocol import END_OF_TEXT, Tokenizer
from quillgpt.tokenizer.tokenizer_json import BYTE_OF_CHARACTER, readable
from quillgpt.tokenizer.vocabulary_files import VOCABULARY, document_of, has_vocabulary_files

FILE_NAME = "tokenizer.json"
REMEDY = "make a new one with `quill tokenizer train`"


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, or of a directory's; its name is that of the menu's entry it equals."""
    if path.is_dir() and not (path / FILE_NAME).exists() and has_vocabulary_files(path):
        path, document = path / VOCABULARY, document_of(path)
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
    if tokens == BYTES and not merges:
        return ByteTokenizer()
    return _byte_level(path, tokens, end_of_text, merges)


def _read_json(path: Path) -> Any:
    if not path.exists():
        raise DataError(f"{path}: no such file; {REMEDY}")
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected a {FILE_NAME}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON in UTF-8 ({error}); {REMEDY}") from None


def _entry(path: Path, mapping: Any, name: str, kind: type) -> Any:
    if not isinstance(mapping, dict) or type(mapping.get(name)) is not kind:
        expected = {dict: "an object", list: "a list"}[kind]
        raise DataError(f"{path} is not a tokenizer.json: {name!r} is missing or not {expected}; {REMEDY}")
    return mapping[name]


def _refuse_other_rules(path: Path, document: dict, model: dict, has_fallback: bool) -> None:
    """Refuse what would make us cut a text differently from the library that wrote the file."""
    cutting = document.get("pre_tokenizer")
    if has_fallback:
        is_ours = cutting is None
    else:
        cutting = cutting if isinstance(cutting, dict) else {}
        is_ours = cutting.get("type") == "ByteLevel" and not cutting.get("add_prefix_space", True)
        is_ours = is_ours and cutting.get("use_regex", True) is True
    rules = {
        "pre_tokenizer": is_ours,
        "normalizer": document.get("normalizer") is None,
        "post_processor": _adds_nothing(document.get("post_processor") or {}),
        "model type": model.get("type", "BPE") == "BPE",
    }
    rules |= {
        name: not model.get(name)
        for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    }
    for name, is_plain in rules.items():
        if not is_plain:
            raise DataError(f"{path}: its {name} is not GPT-2's, the only kind that quill reads; {REMEDY}")


def _adds_nothing(post_processor: Any) -> bool:
    """Whether it leaves the tokens as they are: GPT-2's, or a template of no special tokens, as transformers writes."""
    if not isinstance(post_processor, dict):
        return False
    kind = post_processor.get("type", "ByteLevel")
    return kind == "ByteLevel" or (kind == "TemplateProcessing" and post_processor.get("special_tokens") == {})


def _end_of_text(path: Path, document: dict) -> int:
    added = _entry(path, document, "added_tokens", list)
    contents = [token.get("content") if isinstance(token, dict) else token for token in added]
    if contents != [END_OF_TEXT] or type(added[0].get("id")) is not int:
        found = ", ".join(map(str, contents[:5])) or "none"
        raise DataError(f"{path}: its special tokens are {found}; expected {END_OF_TEXT} with its id, and no other")
    return added[0]["id"]


def _names_by_id(path: Path, vocabulary: dict, end_of_text: int) -> list[str]:
    ids = {END_OF_TEXT: end_of_text} | vocabulary
    wrong = next((name for name, i in ids.items() if type(i) is not int or not 0 <= i < len(ids)), None)
    if wrong is not None:
        raise DataError(f"{path}: token {wrong!r} has id {ids[wrong]!r}; expected a whole number below {len(ids):,}")
    if len(set(ids.values())) != len(ids) or ids[END_OF_TEXT] != end_of_text:
        raise DataError(f"{path}: two of its tokens have the same id; {REMEDY}")
    return sorted(ids, key=ids.__getitem__)


def _tokens(path: Path, names: list[str], end_of_text: int) -> list[bytes]:
    tokens = []
    for i, name in enumerate(names):
        if i != end_of_text and (not name or not set(name) <= BYTE_OF_CHARACTER.keys()):
            raise DataError(f"{path}: token {i} ({name!r}) is not written as bytes in GPT-2's manner; {REMEDY}")
        tokens.append(b"" if i == end_of_text else bytes([BYTE_OF_CHARACTER[character] for character in name]))
    missing = {bytes([value]) for value in range(256)} - set(tokens)
    if missing:
        raise DataError(f"{path}: {len(missing)} of the 256 bytes have no token, {min(missing)!r} for one; {REMEDY}")
    return tokens


def _byte_level(path: Path, tokens: list[bytes], end_of_text: int, merges: list) -> ByteLevelBPE:
    tokenizer = ByteLevelBPE(tokens, end_of_text)
    if tokenizer.fingerprint == GPT2_FINGERPRINT:  # known to be consistent: spares a second of checking
        return tokenizer
    written = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    try:
        expected = merges_in_order(tokens)
    except ValueError as error:
        raise DataError(f"{path}: its vocabulary is not in the order of its merges: {error}") from None
    if written != [[readable(left), readable(right)] for left, right in expected]:
        raise DataError(f"{path}: its merges are not those of its vocabulary; {REMEDY}")
    return tokenizer


def _character_tokenizer(path: Path, names: list[str], merges: list) -> CharacterTokenizer:
    characters = [name for name in names if len(name) == 1]
    is_whole = not any("\ud800" <= character <= "\udfff" for character in characters)
    tokenizer = CharacterTokenizer(characters if is_whole else [])
    if merges or list(json.loads(tokenizer.to_json())["model"]["vocab"]) != names:
        expected = "the sorted characters, the remaining bytes, end of text"
        raise DataError(f"{path}: its tokens are not those of a character tokenizer ({expected}); {REMEDY}")
    return tokenizer
