"""Text on its way from a source to tokens: documents of any length, cut into pieces of bounded length.

A source gives each document as blocks of text, so that neither a huge file nor a huge line has to be held in memory.
Where one is cut for encoding depends on its text alone, never on the size of the blocks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from quillgpt.tokenizer import Tokenizer

PIECE_CHARACTERS = 1 << 20
CUT_SEARCH_CHARACTERS = 1 << 16
HELD_OUT_FRACTION = 0.05


class Piece(NamedTuple):
    """Part of a document, nearly always all of it; `ends_document` marks the last one."""

    text: str
    ends_document: bool


class EncodedPiece(NamedTuple):
    """A piece as tokens, end of text included where the document ends; digest is the SHA-256 of its content."""

    split: str
    tokens: np.ndarray
    ends_document: bool
    text_bytes: int
    digest: bytes


@dataclass
class Tally:
    """What a pass over a source met and a reader of the manifest should know."""

    replacements: int = 0
    empty_documents: int = 0
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@runtime_checkable
class TextSource(Protocol):
    """A source of documents; each pass gives the same ones in the same order."""

    licence: str
    held_out_fraction: float

    def documents(self, tally: Tally) -> Iterator[Iterable[str]]:
        """Each document as blocks of text; what was replaced or skipped goes to the tally."""
        ...

    def text_bytes(self) -> int:
        """About how many bytes of UTF-8 all documents have."""
        ...


@runtime_checkable
class TokenSource(Protocol):
    """A source whose text was encoded elsewhere."""

    licence: str

    def encoded(self, tokenizer: Tokenizer, tally: Tally) -> Iterator[EncodedPiece]:
        """The tokens of both splits, after checking them against the tokenizer's vocabulary."""
        ...

    def text_bytes(self) -> int:
        """About how many bytes of UTF-8 the tokens stand for."""
        ...


def pieces(source: TextSource, tally: Tally, *, limit: int) -> Iterator[Piece]:
    """The source's first `limit` documents (0: all) in pieces; documents without text are counted and left out."""
    for document in islice(source.documents(tally), limit or None):
        is_empty = True
        for piece in cut(document):
            is_empty = False
            yield piece
        tally.empty_documents += is_empty


def cut(blocks: Iterable[str]) -> Iterator[Piece]:
    """Cut one document into pieces of at most PIECE_CHARACTERS; none for an empty document."""
    pending = ""
    for block in blocks:
        pending += block
        while len(pending) > PIECE_CHARACTERS:
            end = _cut_place(pending)
            yield Piece(pending[:end], False)
            pending = pending[end:]
    if pending:
        yield Piece(pending, True)


def blocks_of(text: str) -> Iterator[str]:
    """A text in blocks of PIECE_CHARACTERS, so that cutting a long one does not copy its rest again and again."""
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield text[start : start + PIECE_CHARACTERS]


def _cut_place(text: str) -> int:
    """The last place in the first PIECE_CHARACTERS between a letter and a space or newline.

    There GPT-2's pattern always begins a new word, so both sides give the tokens that the whole gives. A text without
    such a place near the end (a line of digits without spaces) is cut at the limit, whatever stands there.
    """
    end = PIECE_CHARACTERS
    while end > PIECE_CHARACTERS - CUT_SEARCH_CHARACTERS:
        end = max(text.rfind(" ", 0, end), text.rfind("\n", 0, end))
        if end < 1:
            break
        if text[end - 1].isalpha():
            return end
    return PIECE_CHARACTERS
