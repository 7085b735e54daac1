"""A tokenizer that is made when it is first used: its model loads where its vocabulary is not at hand."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from quillgpt.tokenizer.protocol import Tokenizer


class LaterTokenizer:
    """Does what the tokenizer does that `create` makes; an error of `create` is raised at each use."""

    def __init__(self, create: Callable[[], Tokenizer]) -> None:
        self._create = create

    @cached_property
    def _made(self) -> Tokenizer:
        return self._create()

    @property
    def name(self) -> str:
        """Its entry in the menu."""
        return self._made.name

    @property
    def vocab_size(self) -> int:
        """Number of tokens, end of text included."""
        return self._made.vocab_size

    @property
    def end_of_text(self) -> int:
        """The token behind every document."""
        return self._made.end_of_text

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what it does."""
        return self._made.fingerprint

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The text's tokens."""
        return self._made.encode(text, allow_special=allow_special)

    def encode_array(self, text: str) -> np.ndarray:
        """The text's tokens as uint32."""
        return self._made.encode_array(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens."""
        return self._made.decode(tokens)

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The UTF-8 bytes of the tokens."""
        return self._made.decode_bytes(tokens)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token."""
        return self._made.token_bytes(token)

    def to_json(self) -> str:
        """The content of its tokenizer.json."""
        return self._made.to_json()
