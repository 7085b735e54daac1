"""Documents on their way from a source to tokens: read in blocks, cut into chunks, assigned to a split.

A source gives each document as blocks of text, so that neither a huge file nor a huge line has to fit into memory.
Where a document is cut into chunks depends on its text alone, not on the size of the blocks.

The split depends on the text alone, too, so it is the same in every run. By hash: a document belongs to the validation
split if the SHA-256 of its UTF-8 bytes (of a long document, of its first chunk) falls into the source's fraction; exact
duplicates stay together. By position, for one long text or too few documents: the last tenth of the characters.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np

from quillgpt.config import DataConfig
from quillgpt.errors import DataError
from quillgpt.tokenizer import Tokenizer

CHUNK_CHARACTERS = 1 << 20
CUT_SEARCH_CHARACTERS = 1 << 16
MIN_VALIDATION_DOCUMENTS = 5  # expected; at the usual 5 %, fewer than 100 documents are split by position
MIN_CHARACTERS = 10


class TextChunk(NamedTuple):
    """Part of a document, nearly always all of it; `ends_document` marks the last one."""

    text: str
    ends_document: bool


class SplitChunk(NamedTuple):
    """A chunk as UTF-8, with its split (train or val) and the SHA-256 of its content."""

    split: str
    content: bytes
    ends_document: bool
    digest: bytes


class EncodedChunk(NamedTuple):
    """A chunk as tokens, with an end of text where its document ends; digest is the SHA-256 of its content."""

    split: str
    tokens: np.ndarray
    ends_document: bool
    text_bytes: int
    digest: bytes


@dataclass
class SourceStats:
    """What a pass over a source met that the manifest reports."""

    replacements: int = 0
    empty_documents: int = 0
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class DataSource(ABC):
    """What every source has. Subclass `TextSource` or `TokenSource`.

    description: a noun phrase, as in "trained on ...". has_subsets: whether the setting `subset` chooses a part.
    """

    description: str
    licence: str
    has_subsets: bool = False

    @abstractmethod
    def __init__(self, config: DataConfig) -> None:
        """Check that the files exist; a `DataError` names one that is missing or unreadable."""

    @abstractmethod
    def text_bytes(self) -> int:
        """Approximate size of all documents in bytes of UTF-8."""

    @classmethod
    def download_size(cls, config: DataConfig) -> str:
        """What preparing all documents downloads, in words; empty if it is little or nothing."""
        return ""


class TextSource(DataSource):
    """A source of documents; each pass gives the same ones in the same order.

    val_fraction: share of the documents in the validation split when it is chosen by hash.
    """

    val_fraction: float = 0.05

    @abstractmethod
    def documents(self, stats: SourceStats) -> Iterator[Iterable[str]]:
        """Yield each document as blocks of text; what was replaced or skipped is added to the stats."""


class TokenSource(DataSource):
    """A source whose text was encoded elsewhere. validation: what its validation split is, in words."""

    validation: str

    @abstractmethod
    def encoded(self, tokenizer: Tokenizer, stats: SourceStats) -> Iterator[EncodedChunk]:
        """Yield the tokens of both splits, checked against the tokenizer's vocabulary."""


def text_chunks(source: TextSource, stats: SourceStats, *, limit: int) -> Iterator[TextChunk]:
    """Yield the source's first `limit` documents (0: all) in chunks; empty documents are counted and left out."""
    for document in islice(source.documents(stats), limit or None):
        is_empty = True
        for chunk in chunked(document):
            is_empty = False
            yield chunk
        stats.empty_documents += is_empty


def chunked(blocks: Iterable[str]) -> Iterator[TextChunk]:
    """Cut one document into chunks of at most CHUNK_CHARACTERS; an empty document has none."""
    pending = ""
    for block in blocks:
        pending += block
        while len(pending) > CHUNK_CHARACTERS:
            end = _chunk_end(pending)
            yield TextChunk(pending[:end], False)
            pending = pending[end:]
    if pending:
        yield TextChunk(pending, True)


def text_blocks(text: str) -> Iterator[str]:
    """Yield a text in blocks of CHUNK_CHARACTERS, so that cutting a long one does not copy its rest for every chunk."""
    for start in range(0, len(text), CHUNK_CHARACTERS):
        yield text[start : start + CHUNK_CHARACTERS]


def _chunk_end(text: str) -> int:
    """Return the last position in the first CHUNK_CHARACTERS between a letter and a space or newline.

    GPT-2's pattern always starts a new word there, so both sides encode to the tokens of the uncut text. A text without
    such a position near the end (a line of digits without spaces) is cut at the limit.
    """
    end = CHUNK_CHARACTERS
    while end > CHUNK_CHARACTERS - CUT_SEARCH_CHARACTERS:
        end = max(text.rfind(" ", 0, end), text.rfind("\n", 0, end))
        if end < 1:
            break
        if text[end - 1].isalpha():
            return end
    return CHUNK_CHARACTERS


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """fraction: share of the documents chosen by hash for validation; 0: split by position at `train_characters`."""

    fraction: float
    train_characters: int

    def __str__(self) -> str:
        if self.fraction:
            return f"{self.fraction:.3%} of the documents, by SHA-256"
        return f"the last tenth, from character {self.train_characters:,} on"


def decide_split(source: TextSource, *, name: str, limit: int) -> SplitRule:
    """Read the source until it is certain that a hash can split its documents; otherwise measure all of it."""
    needed = math.ceil(MIN_VALIDATION_DOCUMENTS / source.val_fraction - 1e-9)
    documents = validation = characters = 0
    begins = True
    for text, ends_document in text_chunks(source, SourceStats(), limit=limit):
        validation += begins and _is_validation(_split_chunk("", text, ends_document), source.val_fraction)
        begins = ends_document
        documents += ends_document
        characters += len(text)
        if documents >= needed and 0 < validation < documents:
            return SplitRule(fraction=source.val_fraction, train_characters=0)
    if characters < MIN_CHARACTERS:
        got = f"the source {name} has {characters} characters of text in {documents} documents"
        raise DataError(f"{got}, at least {MIN_CHARACTERS} are needed for a validation split; give it more text")
    return SplitRule(fraction=0.0, train_characters=characters * 9 // 10)


def split_chunks(source: TextSource, rule: SplitRule, stats: SourceStats, *, limit: int) -> Iterator[SplitChunk]:
    """Yield the source's chunks with their splits, in the source's order."""
    chunks = text_chunks(source, stats, limit=limit)
    return _split_by_hash(chunks, rule.fraction) if rule.fraction else _split_at(chunks, rule.train_characters)


def _split_by_hash(chunks: Iterable[TextChunk], fraction: float) -> Iterator[SplitChunk]:
    begins = True
    split = "train"
    for text, ends_document in chunks:
        chunk = _split_chunk(split, text, ends_document)
        if begins:
            split = "val" if _is_validation(chunk, fraction) else "train"
        begins = ends_document
        yield chunk._replace(split=split)


def _split_at(chunks: Iterable[TextChunk], train_characters: int) -> Iterator[SplitChunk]:
    """The document that contains the boundary becomes two: both parts end like a document."""
    left = train_characters
    for text, ends_document in chunks:
        if 0 < left <= len(text):
            yield _split_chunk("train", text[:left], True)
            if left < len(text):
                yield _split_chunk("val", text[left:], ends_document)
        else:
            yield _split_chunk("train" if left > 0 else "val", text, ends_document)
        left -= len(text)


def _split_chunk(split: str, text: str, ends_document: bool) -> SplitChunk:
    content = text.encode()
    return SplitChunk(split, content, ends_document, hashlib.sha256(content).digest())


def _is_validation(first_chunk: SplitChunk, fraction: float) -> bool:
    return int.from_bytes(first_chunk.digest[:8], "big") < fraction * 2**64
