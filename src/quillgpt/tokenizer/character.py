"""Entry `character`: a token is a character that the training text has; any other character is its UTF-8 bytes.

The ids are nanoGPT's as far as those go: the characters sorted, from 0. Behind them come the byte values that are not
themselves a character of the vocabulary, ascending, and end of text. So Shakespeare's 65 characters keep ids 0 ... 64
and the vocabulary has 65 + 191 + 1 = 257 tokens; in general 257 and one more for each character beyond ASCII.

The bytes are there because held-out text and prompts have characters that training text did not: without them one
unknown character would stop `quill prepare`, or would have to be learned from held-out text. A model soon gives the
bytes it never sees a probability near 0.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from quillgpt.errors import DataError
from quillgpt.tokenizer.protocol import TokenizerKind
from quillgpt.tokenizer.tokenizer_json import character_json
from quillgpt.tokenizer.vocabulary import (
    encode_with_special,
    join_tokens,
    surrogate_error,
    token_at,
    vocabulary_fingerprint,
)

UNKNOWN = np.uint32(2**32 - 1)
CODE_POINTS = 0x110000
CHUNK_CHARACTERS = 1 << 20  # the work arrays of a chunk take some 20 bytes a character


class CharacterTokenizer:
    """One token for each known character, and one for each byte of an unknown one."""

    def __init__(self, characters: Iterable[str]) -> None:
        self.name = "character"
        self._characters = sorted(set(characters))
        self._bytes = [value for value in range(256) if value >= 128 or chr(value) not in set(self._characters)]
        known = [character.encode() for character in self._characters]
        self._vocabulary = [*known, *(bytes([value]) for value in self._bytes), b""]
        self.vocab_size = len(self._vocabulary)
        self.end_of_text = self.vocab_size - 1
        self.fingerprint = vocabulary_fingerprint(self.name, self._vocabulary)

        self._token_of_character = np.full(CODE_POINTS, UNKNOWN)
        self._token_of_character[[ord(character) for character in self._characters]] = np.arange(len(known))
        self._token_of_byte = np.zeros(256, dtype=np.uint32)
        self._token_of_byte[self._bytes] = len(known) + np.arange(len(self._bytes))

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The text's characters; `allow_special` makes <|endoftext|> in it the end-of-text token."""
        if allow_special:
            return encode_with_special(text, self.encode, self.end_of_text)
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """The text's characters as uint32; an unknown character gives as many tokens as it has bytes."""
        chunks = [text[start : start + CHUNK_CHARACTERS] for start in range(0, len(text), CHUNK_CHARACTERS)]
        try:
            return np.concatenate([self._encode_chunk(chunk) for chunk in chunks or [""]])
        except UnicodeEncodeError:
            raise surrogate_error(text) from None

    def _encode_chunk(self, text: str) -> np.ndarray:
        tokens = self._token_of_character[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)]
        if not np.any(tokens == UNKNOWN):
            return tokens
        # Over the bytes: a known character's token stands at its first byte, an unknown one's at each of its bytes.
        content = np.frombuffer(text.encode(), dtype=np.uint8)
        is_first = (content & 0xC0) != 0x80
        tokens = tokens[np.cumsum(is_first) - 1]
        is_unknown = tokens == UNKNOWN
        return np.where(is_unknown, self._token_of_byte[content], tokens)[is_first | is_unknown]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens; U+FFFD where bytes are not UTF-8."""
        return self.decode_bytes(tokens).decode(errors="replace")

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The UTF-8 bytes of the tokens."""
        return join_tokens(self._vocabulary, tokens)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one character or the one byte; none for end of text."""
        return token_at(self._vocabulary, token)

    def to_json(self) -> str:
        """The tokenizer.json: for Hugging Face a BPE over characters without merges, with byte fallback."""
        return character_json(self._characters, self._bytes, self.end_of_text)


def create(texts: Iterable[str], vocab_size: int) -> CharacterTokenizer:
    """The tokenizer of every character in the texts; their number, not `vocab_size`, makes its size."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    if not characters:
        raise DataError("no text to take characters from: the source's training documents are empty")
    for text in [character for character in characters if "\ud800" <= character <= "\udfff"]:
        raise surrogate_error(text)
    return CharacterTokenizer(characters)


CHARACTER = TokenizerKind(meaning="one token a character of the training text", learns=True, create=create)
