"""Which documents are held out: decided once by what they say, the same in every run.

By hash: a document is held out when the SHA-256 of its UTF-8 bytes falls into the source's fraction, so that exact
duplicates stay together (of a document longer than a piece, the first piece decides). By position: the last tenth of
the characters, for one long text or too few documents.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from quillgpt.data.document import Piece, Tally, TextSource, pieces
from quillgpt.errors import DataError

EXPECTED_HELD_OUT = 5  # at the usual 5 %, this makes 100 documents the fewest that are split by hash
MINIMUM_CHARACTERS = 10


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """fraction: share of documents held out by hash, 0 when split by position at `train_characters`."""

    fraction: float
    train_characters: int

    def __str__(self) -> str:
        if self.fraction:
            return f"{self.fraction:.3%} of the documents, by SHA-256"
        return f"the last tenth, from character {self.train_characters:,} on"


class SplitPiece(NamedTuple):
    """A piece as UTF-8, with its split and the SHA-256 of its content."""

    split: str
    content: bytes
    ends_document: bool
    digest: bytes


def decide_split(source: TextSource, *, name: str, limit: int) -> SplitRule:
    """Look at the source until it is clear that its documents can be split by hash; else measure all of it."""
    fewest = math.ceil(EXPECTED_HELD_OUT / source.held_out_fraction - 1e-9)
    documents = held_out = characters = 0
    begins = True
    for piece in pieces(source, Tally(), limit=limit):
        if begins:
            held_out += _falls_into(hashlib.sha256(piece.text.encode()).digest(), source.held_out_fraction)
        begins = piece.ends_document
        documents += piece.ends_document
        characters += len(piece.text)
        if documents >= fewest and 0 < held_out < documents:
            return SplitRule(fraction=source.held_out_fraction, train_characters=0)
    if characters < MINIMUM_CHARACTERS:
        got = f"the source {name} has {characters} characters of text in {documents} documents"
        raise DataError(f"{got}, at least {MINIMUM_CHARACTERS} are needed to hold a tenth out; give it more text")
    return SplitRule(fraction=0.0, train_characters=characters * 9 // 10)


def split_pieces(source: TextSource, rule: SplitRule, tally: Tally, *, limit: int) -> Iterator[SplitPiece]:
    """The source's pieces with their splits, in the source's order."""
    found = pieces(source, tally, limit=limit)
    return _by_hash(found, rule.fraction) if rule.fraction else _by_position(found, rule.train_characters)


def _by_hash(found: Iterable[Piece], fraction: float) -> Iterator[SplitPiece]:
    begins = True
    split = "train"
    for piece in found:
        content = piece.text.encode()
        digest = hashlib.sha256(content).digest()
        if begins:
            split = "val" if _falls_into(digest, fraction) else "train"
        begins = piece.ends_document
        yield SplitPiece(split, content, piece.ends_document, digest)


def _by_position(found: Iterable[Piece], train_characters: int) -> Iterator[SplitPiece]:
    """The document across the place of the cut becomes two: both sides end like a document."""
    left = train_characters
    for piece in found:
        if 0 < left <= len(piece.text):
            yield _split_piece("train", piece.text[:left], True)
            if left < len(piece.text):
                yield _split_piece("val", piece.text[left:], piece.ends_document)
        else:
            yield _split_piece("train" if left > 0 else "val", piece.text, piece.ends_document)
        left -= len(piece.text)


def _split_piece(split: str, text: str, ends_document: bool) -> SplitPiece:
    content = text.encode()
    return SplitPiece(split, content, ends_document, hashlib.sha256(content).digest())


def _falls_into(digest: bytes, fraction: float) -> bool:
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
