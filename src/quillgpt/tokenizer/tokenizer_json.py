"""Write tokenizer.json in the format of Hugging Face's `tokenizers`, for every entry of the menu.

There are two kinds of file. Byte-level BPE as GPT-2's [Radford 2019, 2.2]: text is split by `SPLIT`, and the bytes of a
piece merge by rank; `byte` has no merges. And characters with byte fallback, without split and merges.
"""

import json
from collections.abc import Iterable, Sequence

from quillgpt.tokenizer.base import END_OF_TEXT


def _characters_of_bytes() -> list[str]:
    """GPT-2's printable character for each byte: itself if Latin-1 prints it, otherwise the next from U+0100.

    So a space is Ġ and a newline Ċ, and JSON holds any bytes as a readable string.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return [chr(256 + others.index(value)) if value in others else chr(value) for value in range(256)]


CHARACTER_OF_BYTE = _characters_of_bytes()
BYTE_OF_CHARACTER = {character: value for value, character in enumerate(CHARACTER_OF_BYTE)}

PLAIN_MODEL = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "ignore_merges": False,
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
BYTE_FALLBACK = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}


def byte_level_json(vocabulary: Sequence[bytes], end_of_text: int, *, merges: Iterable[tuple[bytes, bytes]]) -> str:
    """The file of a byte-level BPE; `merges` are in the order of the tokens they make."""
    ids = {readable(token): i for i, token in enumerate(vocabulary) if i != end_of_text}
    lines = [f"{readable(left)} {readable(right)}" for left, right in merges]
    return _document(ids, end_of_text, merges=lines, byte_fallback=False)


def character_json(characters: Sequence[str], single_bytes: Sequence[int], end_of_text: int) -> str:
    """The file of a character tokenizer: characters, then bytes, from id 0."""
    names = [*characters, *(f"<0x{value:02X}>" for value in single_bytes)]
    return _document({name: i for i, name in enumerate(names)}, end_of_text, merges=[], byte_fallback=True)


def config_json() -> str:
    """The tokenizer_config.json with which transformers' `AutoTokenizer` loads the tokenizer.json of its directory."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    return json.dumps(settings, indent=2) + "\n"


def readable(token: bytes) -> str:
    """A token as tokenizer.json writes it, one printable character for each byte."""
    return "".join([CHARACTER_OF_BYTE[value] for value in token])


def _document(ids: dict[str, int], end_of_text: int, *, merges: list[str], byte_fallback: bool) -> str:
    special = {"id": end_of_text, "content": END_OF_TEXT, "single_word": False, "lstrip": False, "rstrip": False}
    model = PLAIN_MODEL | {"byte_fallback": byte_fallback, "vocab": ids | {END_OF_TEXT: end_of_text}, "merges": merges}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special | {"normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": None if byte_fallback else BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_FALLBACK if byte_fallback else BYTE_LEVEL,
        "model": model,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
