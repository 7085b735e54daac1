"""Entry `byte`: a token is a byte of UTF-8. 256 bytes, id = value, and end of text: 257 tokens, nothing to learn."""

from collections.abc import Iterable, Sequence

import numpy as np

from quillgpt.tokenizer.protocol import TokenizerKind
from quillgpt.tokenizer.tokenizer_json import byte_level_json
from quillgpt.tokenizer.vocabulary import (
    encode_with_special,
    join_tokens,
    surrogate_error,
    token_at,
    vocabulary_fingerprint,
)

VOCABULARY = [*(bytes([value]) for value in range(256)), b""]


class ByteTokenizer:
    """One token for each byte of the UTF-8 text."""

    def __init__(self) -> None:
        self.name = "byte"
        self.vocab_size = len(VOCABULARY)
        self.end_of_text = 256
        self.fingerprint = vocabulary_fingerprint(self.name, VOCABULARY)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The text's bytes; `allow_special` makes <|endoftext|> in it the end-of-text token."""
        if allow_special:
            return encode_with_special(text, self.encode, self.end_of_text)
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """The text's bytes as uint32."""
        try:
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)
        except UnicodeEncodeError:
            raise surrogate_error(text) from None

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the bytes; U+FFFD where they are not UTF-8."""
        return self.decode_bytes(tokens).decode(errors="replace")

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes themselves."""
        return join_tokens(VOCABULARY, tokens)

    def token_bytes(self, token: int) -> bytes:
        """The one byte of the token, none for end of text."""
        return token_at(VOCABULARY, token)

    def to_json(self) -> str:
        """The tokenizer.json: for Hugging Face a BPE without merges."""
        return byte_level_json(VOCABULARY, self.end_of_text, merges=[])


def create(texts: Iterable[str], vocab_size: int) -> ByteTokenizer:
    """The byte tokenizer; it needs no text and has one size."""
    return ByteTokenizer()


BYTE = TokenizerKind(meaning="one token a byte, 257 in all", learns=False, create=create)
