"""What tokenizers share: a vocabulary is a list of bytes, one entry a token, empty at end of text."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from quillgpt.errors import DataError
from quillgpt.tokenizer.protocol import END_OF_TEXT, Tokenizer


def vocabulary_fingerprint(kind: str, vocabulary: Sequence[bytes]) -> str:
    """SHA-256 (hex) of the way of cutting and of every token's bytes in the order of their ids."""
    digest = hashlib.sha256(f"quillgpt tokenizer 1\n{kind}\n".encode())
    for token in vocabulary:
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()


def join_tokens(vocabulary: Sequence[bytes], tokens: Sequence[int]) -> bytes:
    """The bytes of the tokens, one after the other."""
    if len(tokens):
        token_at(vocabulary, min(tokens))
        token_at(vocabulary, max(tokens))
    return b"".join([vocabulary[token] for token in tokens])


def token_at(vocabulary: Sequence[bytes], token: int) -> bytes:
    """The bytes of one token; one that does not exist is a `ValueError`, a negative one too."""
    if not 0 <= token < len(vocabulary):
        raise ValueError(f"token {token} is outside the vocabulary of {len(vocabulary):,} tokens")
    return vocabulary[token]


def encode_with_special(text: str, encode: Callable[[str], list[int]], end_of_text: int) -> list[int]:
    """Tokens of a text in which <|endoftext|> means the end of a text."""
    first, *rest = text.split(END_OF_TEXT)
    tokens = encode(first)
    for part in rest:
        tokens.append(end_of_text)
        tokens += encode(part)
    return tokens


def surrogate_error(text: str) -> DataError:
    """The error for a text that UTF-8 cannot write because it holds half of a character's UTF-16 pair.

    Python's `json` makes one from the escape of one half alone.
    """
    position, half = next((i, x) for i, x in enumerate(text) if "\ud800" <= x <= "\udfff")
    found = f"U+{ord(half):04X} at character {position:,}"
    return DataError(f"the text holds half a character (lone surrogate {found}); replace it, for example by U+FFFD")


def bytes_per_token(tokenizer: Tokenizer) -> np.ndarray:
    """How many bytes each token stands for: int64, (V,), 0 for end of text.

    Nats of a text divided by ln 2 and by its bytes are its bits per byte, comparable between tokenizers.
    """
    return np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)], dtype=np.int64)
