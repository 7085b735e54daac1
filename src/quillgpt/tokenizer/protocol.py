"""What every tokenizer is, and what an entry of the menu says about one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

END_OF_TEXT = "<|endoftext|>"
"""the mark behind every document; no text is ever cut into it unless asked"""


class Tokenizer(Protocol):
    """Cuts text into tokens 0 ... vocab_size - 1 and joins them again; decode(encode(text)) == text for every text."""

    @property
    def name(self) -> str:
        """Its entry in the menu."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of tokens, end of text included."""
        ...

    @property
    def end_of_text(self) -> int:
        """The token behind every document; it has no bytes."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what it does: equal for equal tokenizers, wherever they were loaded from."""
        ...

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The text's tokens; the characters <|endoftext|> are text like any other unless `allow_special`."""
        ...

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` without a Python list: uint32, (number of tokens,); a lone surrogate is a `DataError`."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens; bytes that are not UTF-8 (half a character) become U+FFFD."""
        ...

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The UTF-8 bytes of the tokens, joined; a token outside the vocabulary is a `ValueError`."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, which may be part of a character; none for end of text."""
        ...

    def to_json(self) -> str:
        """The content of its tokenizer.json: complete, so that loading it needs no network."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenizerKind:
    """An entry of the menu."""

    meaning: str
    """one line for help texts"""
    learns: bool
    """whether its vocabulary comes from training text"""
    create: Callable[[Iterable[str], int], Tokenizer]
    """make one from training texts and a vocabulary size; what is ready-made looks at neither"""
