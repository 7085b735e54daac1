"""Byte-level BPE [Sennrich 2016; Radford 2019, 2.2]: what `gpt2` and `bpe` are once their vocabulary is there.

Text is split into pieces (`SPLIT`); within a piece the neighbours whose union has the lowest id merge, again and again.
tiktoken does it; `merge_order` is the same rule in Python, from which tokenizer.json's list of merges is rebuilt.
"""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from quillgpt.tokenizer.protocol import END_OF_TEXT
from quillgpt.tokenizer.tokenizer_json import byte_level_json
from quillgpt.tokenizer.vocabulary import (
    encode_with_special,
    join_tokens,
    surrogate_error,
    token_at,
    vocabulary_fingerprint,
)

# GPT-2's split: an English contraction; letters, digits or other signs, each with the space before them; white space.
# A run of white space before a word leaves its last character to the word. `++` only saves going back.
SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# Unicode's White_Space, which is `\s` in SPLIT; Python's `\s` has four control characters more.
WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
LONG_SPACE = re.compile(f"[{WHITE_SPACE}]{{1000,}}(?=[^{WHITE_SPACE}])")

GPT2_FINGERPRINT = "d631d5e2a0abe0263ac24d3995dc1fb6379d4fd35001b88e6f1f5a579ae0526f"


class ByteLevelBPE:
    """A byte-level BPE of a vocabulary whose order of ids is the order of merges."""

    def __init__(self, vocabulary: Sequence[bytes], end_of_text: int) -> None:
        """`vocabulary` has every single byte, and b"" at the id of end of text."""
        import tiktoken

        self.vocab_size = len(vocabulary)
        self.end_of_text = end_of_text
        self.fingerprint = vocabulary_fingerprint("byte-level bpe, split as GPT-2", vocabulary)
        self.name = "gpt2" if self.fingerprint == GPT2_FINGERPRINT else "bpe"
        self._vocabulary = list(vocabulary)
        self._ranks = {token: i for i, token in enumerate(vocabulary) if i != end_of_text}
        # Without a special token tiktoken looks for one at every character, which takes a third of the time.
        # Text that reads like it is still text, because encoding never allows it.
        special = {END_OF_TEXT: end_of_text}
        self._encoding = tiktoken.Encoding(
            self.name, pat_str=SPLIT, mergeable_ranks=self._ranks, special_tokens=special
        )

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The text's tokens; `allow_special` makes <|endoftext|> in it the end-of-text token."""
        if allow_special:
            return encode_with_special(text, self.encode, self.end_of_text)
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """The text's tokens as uint32."""
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            raise surrogate_error(text) from None
        except ValueError:  # the split gives up on about 100,000 white-space characters before a word
            parts = [self._encoding.encode_to_numpy(part, disallowed_special=()) for part in split_long_space(text)]
            return np.concatenate(parts)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens; U+FFFD where bytes are not UTF-8."""
        return self.decode_bytes(tokens).decode(errors="replace")

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The UTF-8 bytes of the tokens."""
        return join_tokens(self._vocabulary, tokens)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; none for end of text."""
        return token_at(self._vocabulary, token)

    def to_json(self) -> str:
        """The tokenizer.json, which Hugging Face's `AutoTokenizer` loads with equal ids."""
        return self._json

    @functools.cached_property
    def _json(self) -> str:
        return byte_level_json(self._vocabulary, self.end_of_text, merges=merges_in_order(self._vocabulary))


def split_long_space(text: str) -> Iterator[str]:
    """Cut a text before the last character of each long run of white space.

    SPLIT cuts there too (the last one belongs to the next word), so the parts have the same tokens as the whole.
    """
    start = 0
    for run in LONG_SPACE.finditer(text):
        yield text[start : run.end() - 1]
        start = run.end() - 1
    yield text[start:]


def merges_in_order(vocabulary: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The two parts of each token of several bytes, in the order of ids; a token without two parts is a `ValueError`.

    (b" t", b"he") for " the", say: what the earlier merges make of its bytes.
    """
    ranks = {token: rank for rank, token in enumerate(vocabulary)}
    merges = []
    for rank, token in enumerate(vocabulary):
        if len(token) > 1:
            parts = merge_order(token, ranks, below=rank)
            if len(parts) != 2:
                raise ValueError(f"token {rank} ({token!r}) does not come from merging two tokens before it")
            merges.append((parts[0], parts[1]))
    return merges


def merge_order(piece: bytes, ranks: Mapping[bytes, int], *, below: int) -> list[bytes]:
    """The tokens of a piece when only those of a rank below `below` may be made: lowest rank first, then leftmost."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        pairs = [ranks.get(left + right, below) for left, right in itertools.pairwise(parts)]
        lowest = min(pairs)
        if lowest >= below:
            break
        i = pairs.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
