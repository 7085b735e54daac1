"""The base class of tokenizers, and what an entry of the menu says about one."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from quillgpt.errors import DataError

END_OF_TEXT = "<|endoftext|>"
"""the end-of-text token, which follows every document; these characters in a text are text unless `allow_special`"""


class Tokenizer(ABC):
    """Text to tokens 0 ... vocab_size - 1 and back; decode(encode(text)) == text for every text.

    name: its entry in the menu. vocab_size: number of tokens, including end of text. end_of_text: the token after every
    document; it has no bytes. fingerprint: SHA-256 (hex) of scheme and vocabulary, equal for equal tokenizers.

    vocabulary: the bytes of every token. scheme: how text is split; two tokenizers that are equal in both encode every
    text equally.
    """

    def __init__(self, name: str, vocabulary: Sequence[bytes], end_of_text: int, *, scheme: str) -> None:
        self.name = name
        self.vocab_size = len(vocabulary)
        self.end_of_text = end_of_text
        self._vocabulary = list(vocabulary)
        digest = hashlib.sha256(f"quillgpt tokenizer 1\n{scheme}\n".encode())
        for token in vocabulary:
            digest.update(len(token).to_bytes(4, "little") + token)
        self.fingerprint = digest.hexdigest()

    @abstractmethod
    def to_json(self) -> str:
        """The content of its tokenizer.json: complete, so that loading it needs no network."""

    @abstractmethod
    def _encode(self, text: str) -> np.ndarray:
        """`encode_array`; a lone surrogate is a `UnicodeEncodeError`."""

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The tokens of a text; `allow_special` makes <|endoftext|> in it the end-of-text token."""
        first, *others = text.split(END_OF_TEXT) if allow_special else [text]
        tokens = self.encode_array(first).tolist()
        for part in others:
            tokens += [self.end_of_text, *self.encode_array(part).tolist()]
        return tokens

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` without a Python list: uint32, (number of tokens,); a lone surrogate is a `DataError`."""
        try:
            return self._encode(text)
        except UnicodeEncodeError:
            raise surrogate_error(text) from None

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self.decode_bytes(tokens).decode(errors="replace")

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The UTF-8 bytes of the tokens, joined; a token outside the vocabulary is a `ValueError`."""
        if len(tokens):
            self.token_bytes(min(tokens))
            self.token_bytes(max(tokens))
        return b"".join([self._vocabulary[token] for token in tokens])

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, which may be part of a character; none for end of text."""
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token {token} is outside the vocabulary of {self.vocab_size:,} tokens")
        return self._vocabulary[token]


@dataclass(frozen=True, kw_only=True)
class TokenizerKind:
    """An entry of the menu.

    learns: whether the vocabulary comes from training text. create: from training texts and a vocabulary size, which a
    ready-made tokenizer ignores.
    """

    learns: bool
    create: Callable[[Iterable[str], int], Tokenizer]


def surrogate_error(text: str) -> DataError:
    """The error for a text that UTF-8 cannot encode, because it has one half of a UTF-16 pair.

    Python's `json` decodes the escape of one half to such a text.
    """
    position, half = next((i, x) for i, x in enumerate(text) if "\ud800" <= x <= "\udfff")
    found = f"U+{ord(half):04X} at character {position:,}"
    return DataError(f"the text holds half a character (lone surrogate {found}); replace it, for example by U+FFFD")


def bytes_per_token(tokenizer: Tokenizer) -> np.ndarray:
    """The number of bytes of each token: int64, (V,), 0 for end of text.

    The nats of a text divided by ln 2 and by its bytes are its bits per byte, comparable between tokenizers.
    """
    return np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)], dtype=np.int64)


class LazyTokenizer:
    """A `Tokenizer` that `create` makes at its first use: a model can load where its vocabulary cannot.

    An error of `create` is raised at each use.
    """

    def __init__(self, create: Callable[[], Tokenizer]) -> None:
        self._create = create

    @cached_property
    def _created(self) -> Tokenizer:
        return self._create()

    def __getattr__(self, name: str) -> Any:
        """An attribute of the tokenizer."""
        if name.startswith("_"):  # looked up before there is a tokenizer, by pickle for example
            raise AttributeError(name)
        return getattr(self._created, name)
