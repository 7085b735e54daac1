"""Entry `character`: a token for each character of the training text; any other character is its UTF-8 bytes.

The first ids are nanoGPT's: the sorted characters, from 0. After them come the byte values that are not themselves a
character of the vocabulary, ascending, and end of text: 257 tokens, and one more for each character beyond ASCII. The
65 characters of Shakespeare have ids 0 ... 64, and the vocabulary 65 + 191 + 1 = 257 tokens.

Validation text and prompts have characters that the training text does not have; without bytes, one of them would stop
`quill prepare`, or would have to be learned from validation text.
"""

from collections.abc import Iterable

import numpy as np

from quillgpt.errors import DataError
from quillgpt.tokenizer.base import Tokenizer, TokenizerKind, surrogate_error
from quillgpt.tokenizer.tokenizer_json import character_json

UNKNOWN = np.uint32(2**32 - 1)
CODE_POINTS = 0x110000
CHUNK_CHARACTERS = 1 << 20  # the arrays of a chunk take about 20 bytes a character


class CharacterTokenizer(Tokenizer):
    """One token for each known character, and one for each byte of an unknown one."""

    def __init__(self, characters: Iterable[str]) -> None:
        known = set(characters)
        self._characters = sorted(known)
        self._bytes = [value for value in range(256) if value >= 128 or chr(value) not in known]
        count, end_of_text = len(known), len(known) + len(self._bytes)
        encoded = [character.encode() for character in self._characters]
        vocabulary = [*encoded, *(bytes([value]) for value in self._bytes), b""]
        super().__init__("character", vocabulary, end_of_text, scheme="character")
        self._token_of_character = np.full(CODE_POINTS, UNKNOWN)
        self._token_of_character[[ord(character) for character in self._characters]] = np.arange(count)
        self._token_of_byte = np.zeros(256, dtype=np.uint32)
        self._token_of_byte[self._bytes] = np.arange(count, end_of_text)

    def _encode(self, text: str) -> np.ndarray:
        starts = range(0, max(1, len(text)), CHUNK_CHARACTERS)
        return np.concatenate([self._encode_chunk(text[start : start + CHUNK_CHARACTERS]) for start in starts])

    def _encode_chunk(self, text: str) -> np.ndarray:
        tokens = self._token_of_character[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)]
        if not np.any(tokens == UNKNOWN):
            return tokens
        # per byte: a known character keeps its token at its first byte, an unknown one has a token at each byte
        content = np.frombuffer(text.encode(), dtype=np.uint8)
        is_first_byte = (content & 0xC0) != 0x80
        tokens = tokens[np.cumsum(is_first_byte) - 1]
        is_unknown = tokens == UNKNOWN
        return np.where(is_unknown, self._token_of_byte[content], tokens)[is_first_byte | is_unknown]

    def to_json(self) -> str:
        """The tokenizer.json: for Hugging Face a BPE over characters without merges, with byte fallback."""
        return character_json(self._characters, self._bytes, self.end_of_text)


def create(texts: Iterable[str], vocab_size: int) -> CharacterTokenizer:
    """The tokenizer of every character in the texts; `vocab_size` is ignored."""
    characters = set[str]()
    for text in texts:
        characters.update(text)
    if not characters:
        raise DataError("no text to take characters from: the source's training documents are empty")
    for character in characters:
        if "\ud800" <= character <= "\udfff":
            raise surrogate_error(character)
    return CharacterTokenizer(characters)


CHARACTER = TokenizerKind(learns=True, create=create)
