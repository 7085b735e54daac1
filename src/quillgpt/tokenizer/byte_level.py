"""Byte-level BPE [Sennrich 2016; Radford 2019, 2.2]: the entries `gpt2` and `bpe`, once they have a vocabulary.

Text is split into pieces (`SPLIT`); within a piece, the neighbours whose union has the lowest id are merged, until none
is left. tiktoken does it; `merge_order` is the same rule in Python, for the list of merges of tokenizer.json.
"""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from quillgpt.tokenizer.base import END_OF_TEXT, Tokenizer
from quillgpt.tokenizer.tokenizer_json import byte_level_json

SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""GPT-2's split: an English contraction; letters, digits or other signs, each with the space before them; white space,
whose last character belongs to the next word. `++` does not backtrack."""

WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Unicode's White_Space, which is `\\s` in SPLIT; Python's `\\s` has four more control characters."""
LONG_SPACE = re.compile(f"[{WHITE_SPACE}]{{1000,}}(?=[^{WHITE_SPACE}])")

GPT2_FINGERPRINT = "d631d5e2a0abe0263ac24d3995dc1fb6379d4fd35001b88e6f1f5a579ae0526f"


class ByteLevelBPE(Tokenizer):
    """A byte-level BPE with a vocabulary in the order of its merges: every single byte, b"" for end of text."""

    def __init__(self, vocabulary: Sequence[bytes], end_of_text: int) -> None:
        import tiktoken

        super().__init__("bpe", vocabulary, end_of_text, scheme="byte-level bpe, split as GPT-2")
        if self.fingerprint == GPT2_FINGERPRINT:
            self.name = "gpt2"
        # without a special token tiktoken looks for one at every character, which takes a third of the time;
        # `disallowed_special=()` encodes its characters as text
        self._encoding = tiktoken.Encoding(
            self.name,
            pat_str=SPLIT,
            mergeable_ranks={token: i for i, token in enumerate(vocabulary) if i != end_of_text},
            special_tokens={END_OF_TEXT: end_of_text},
        )

    def _encode(self, text: str) -> np.ndarray:
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            raise
        except ValueError:  # the split fails on about 100,000 white-space characters before a word
            parts = [self._encoding.encode_to_numpy(part, disallowed_special=()) for part in split_long_space(text)]
            return np.concatenate(parts)

    def to_json(self) -> str:
        """The tokenizer.json, which Hugging Face's `AutoTokenizer` loads with equal ids."""
        return self._json

    @functools.cached_property
    def _json(self) -> str:
        return byte_level_json(self._vocabulary, self.end_of_text, merges=merges_in_order(self._vocabulary))


def split_long_space(text: str) -> Iterator[str]:
    """Split a text before the last character of each long run of white space.

    SPLIT splits there too (the last character belongs to the next word), so the tokens do not change.
    """
    start = 0
    for run in LONG_SPACE.finditer(text):
        yield text[start : run.end() - 1]
        start = run.end() - 1
    yield text[start:]


def merges_in_order(vocabulary: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The two parts of each token of several bytes, in the order of ids; a token without two parts is a `ValueError`.

    For example (b" t", b"he") for " the": the earlier merges applied to its bytes.
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
    """The tokens of a piece, from merges to ranks below `below` only: lowest rank first, then leftmost."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        pairs = [ranks.get(left + right, below) for left, right in itertools.pairwise(parts)]
        lowest = min(pairs)
        if lowest >= below:
            break
        i = pairs.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
