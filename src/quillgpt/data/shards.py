"""Prepared data on disk: `manifest.json`, written last, so that a directory with one is complete; and the shards.

A shard is one file of tokens: a header, the tokens, and where each document ends.

    header (128 bytes) | token_count tokens, uint16 or uint32 | padding to 8 bytes | document_count ends, int64

Everything is little-endian. The checksum is the SHA-256 of the file with the checksum's own bytes set to zero.
"""

import dataclasses
import hashlib
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quillgpt import files
from quillgpt.errors import ConfigError, DataError

MANIFEST = "manifest.json"
WORK = "work.json"
TOKENIZER = "tokenizer.json"
FORMAT = "quillgpt-data"
MANIFEST_VERSION = 1
REMEDY = "delete the data directory and run `quill prepare` again"
SPLITS = ("train", "val")

MAGIC = b"QUILLTOK"
SHARD_VERSION = 1
HEADER = struct.Struct("<8sIIQQQQ32s32s")  # the fields of `ShardHeader`
HEADER_BYTES = 128
CHECKSUM_START = HEADER.size - 32
SHARD_TOKENS = 1 << 25  # 64 MiB of uint16; both splits' unfinished shards are in memory while preparing
DTYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
NANOGPT_VOCABULARY = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One shard in the manifest; `tokens`, `documents`, `text_bytes` and `file_bytes` are counts."""

    file: str
    tokens: int
    documents: int
    text_bytes: int
    file_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a data directory contains, where it came from, and how to recognize it.

    tokenizer: name, fingerprint, vocab_size, end_of_text. validation: the rule that chose the validation split.
    text_sha256: chained over the documents in source order. notes: what a reader should know, in sentences.
    """

    source: str
    licence: str
    settings: dict[str, Any]
    tokenizer: dict[str, Any]
    validation: str
    text_sha256: str
    replacements: int = 0
    empty_documents: int = 0
    notes: list[str] = field(default_factory=list)
    shards: dict[str, list[ShardRecord]]

    @property
    def fingerprint(self) -> str:
        """Identifies the data: SHA-256 (hex) over the hashes of all shards of both splits."""
        lines = [f"{split} {record.sha256}\n" for split in SPLITS for record in self.shards[split]]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def total(self, split: str, name: str) -> int:
        """Sum a count (tokens, documents, text_bytes, file_bytes) over the shards of a split."""
        return sum(getattr(record, name) for record in self.shards[split])

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain values, with the totals first."""
        counts = ("tokens", "documents", "text_bytes", "file_bytes")
        totals = {split: {name: self.total(split, name) for name in counts} for split in SPLITS}
        head = {"format": FORMAT, "version": MANIFEST_VERSION, "fingerprint": self.fingerprint, "totals": totals}
        return head | dataclasses.asdict(self)


def read_manifest(directory: Path) -> Manifest:
    """Read a data directory's manifest; a missing or damaged one is a `DataError` with the remedy."""
    path = directory / MANIFEST
    content = read_json_object(path)
    if content is None and (directory / WORK).exists():
        raise DataError(f"{directory} is not complete: `quill prepare` was interrupted; run it again to continue")
    if content is None:
        remedy = f"make it with `quill prepare SOURCE --out {directory}`"
        raise DataError(f"{directory} holds no prepared data: {MANIFEST} is missing; {remedy}")
    if content.get("format") != FORMAT or content.get("version") != MANIFEST_VERSION:
        got = f"{content.get('format')} {content.get('version')}"
        raise DataError(f"{path}: format {got}, expected {FORMAT} {MANIFEST_VERSION}; {REMEDY}")
    try:
        shards = {split: [ShardRecord(**record) for record in content["shards"][split]] for split in SPLITS}
        names = [field.name for field in dataclasses.fields(Manifest) if field.name != "shards"]
        manifest = Manifest(**{name: content[name] for name in names}, shards=shards)
        if content["fingerprint"] != manifest.fingerprint:
            raise ValueError("its fingerprint is not that of its shards")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}); {REMEDY}") from None
    return manifest


def read_json_object(path: Path) -> dict[str, Any] | None:
    """Read the JSON object in a file of the data directory; None if the file does not exist."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise DataError(f"{path.parent} is a file, expected a directory of prepared data") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}; {REMEDY}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: damaged (not a JSON object); {REMEDY}")
    return content


class ShardHeader(NamedTuple):
    """The header of a shard, in the order of its bytes; fingerprint and checksum are 32 bytes each."""

    magic: bytes
    version: int
    token_bytes: int
    token_count: int
    document_count: int
    vocab_size: int
    largest_token: int
    tokenizer_fingerprint: bytes
    checksum: bytes

    @property
    def tokens_end(self) -> int:
        """Byte at which the tokens end."""
        return HEADER_BYTES + self.token_count * self.token_bytes

    @property
    def ends_start(self) -> int:
        """Byte at which the document ends begin."""
        return self.tokens_end + -self.tokens_end % 8

    def packed(self) -> bytes:
        """Return the bytes of the header."""
        return HEADER.pack(*self).ljust(HEADER_BYTES, b"\0")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The tokens of documents, memory-mapped from a file.

    tokens: length n, uint16 or uint32. document_ends: int64, ascending, the last one is n. A document longer than a
    shard continues in the next one and counts there as another.
    """

    path: Path
    tokens: np.ndarray
    document_ends: np.ndarray


def token_dtype(vocab_size: int) -> np.dtype:
    """Return uint16 if every token of the vocabulary fits, otherwise uint32."""
    return DTYPES[2] if vocab_size <= 1 << 16 else DTYPES[4]


def checked_tokens(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return the tokens in the vocabulary's dtype; one outside the vocabulary is an error (a cast would wrap it)."""
    if len(tokens) and (int(tokens.max()) >= vocab_size or int(tokens.min()) < 0):
        wrong = int(tokens.max()) if int(tokens.max()) >= vocab_size else int(tokens.min())
        expected = f"outside the vocabulary of {vocab_size:,} tokens"
        raise DataError(f"token {wrong} is {expected}; use the tokenizer it came from")
    return tokens.astype(token_dtype(vocab_size), copy=False)


def write_shard(
    path: Path, tokens: np.ndarray, document_ends: np.ndarray, *, vocab_size: int, tokenizer_fingerprint: str
) -> str:
    """Write a shard atomically and return the file's SHA-256 (hex)."""
    assert len(tokens) > 0
    assert int(document_ends[-1]) == len(tokens)
    tokens = checked_tokens(tokens, vocab_size)
    fingerprint = bytes.fromhex(tokenizer_fingerprint)
    counts = (len(tokens), len(document_ends), vocab_size, int(tokens.max()))
    header = ShardHeader(MAGIC, SHARD_VERSION, tokens.itemsize, *counts, fingerprint, checksum=bytes(32))
    padding = bytes(header.ends_start - header.tokens_end)
    parts = [tokens.data.cast("B"), padding, document_ends.astype("<i8").tobytes()]
    digest = hashlib.sha256(header.packed())
    for part in parts:
        digest.update(part)
    header = header._replace(checksum=digest.digest())
    with files.atomic_file(path) as file:
        for part in (header.packed(), *parts):
            file.write(part)
    return file.sha256


def open_shard(path: Path) -> tuple[ShardHeader, Shard]:
    """Map a shard after checking its header against the file's size; the content is read only as it is used."""
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")
    except FileNotFoundError:
        raise DataError(f"{path}: this shard is missing; {REMEDY}") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        reason = getattr(error, "strerror", None) or "the file is empty"
        raise DataError(f"{path}: cannot read this shard: {reason}; {REMEDY}") from None
    header = _read_header(path, content)
    tokens = content[HEADER_BYTES : header.tokens_end].view(DTYPES[header.token_bytes])
    ends = content[header.ends_start :].view("<i8")
    if int(ends[-1]) != header.token_count:
        raise DataError(f"{path}: its last document ends at {ends[-1]}, expected {header.token_count}; {REMEDY}")
    return header, Shard(path=path, tokens=tokens, document_ends=ends)


def verify_shard(header: ShardHeader, shard: Shard) -> None:
    """Read a shard completely and check its checksum, largest token and document ends."""
    digest = hashlib.sha256()
    with shard.path.open("rb") as file:
        start = file.read(HEADER_BYTES)
        digest.update(start[:CHECKSUM_START] + bytes(32) + start[HEADER.size :])
        while chunk := file.read(files.CHUNK_BYTES):
            digest.update(chunk)
    if digest.digest() != header.checksum:
        raise DataError(f"{shard.path}: damaged: its content does not have the checksum of its header; {REMEDY}")
    largest = int(shard.tokens.max())
    if largest >= header.vocab_size:
        place = f"token {largest} at {int(shard.tokens.argmax())}"
        raise DataError(f"{shard.path}: {place} is outside its vocabulary of {header.vocab_size}; {REMEDY}")
    if np.any(np.diff(shard.document_ends, prepend=0) <= 0):
        raise DataError(f"{shard.path}: its document ends are not ascending; {REMEDY}")


def _read_header(path: Path, content: np.ndarray) -> ShardHeader:
    if len(content) < HEADER_BYTES or bytes(content[:8]) != MAGIC:
        remedy = "for nanoGPT's .bin files use `quill prepare nanogpt`"
        raise DataError(f"{path}: not a quill shard (it has no header); {remedy}")
    header = ShardHeader(*HEADER.unpack(bytes(content[: HEADER.size])))
    fault = ""
    expected_bytes = token_dtype(header.vocab_size).itemsize
    file_bytes = header.ends_start + 8 * header.document_count
    if header.version != SHARD_VERSION:
        fault = f"shard format {header.version}, this quill reads {SHARD_VERSION}"
    elif header.token_bytes != expected_bytes:
        has = f"a vocabulary of {header.vocab_size:,} has {expected_bytes}"
        fault = f"{header.token_bytes} bytes a token, {has}"
    elif header.largest_token >= header.vocab_size:
        fault = f"token {header.largest_token} is outside its vocabulary of {header.vocab_size:,}"
    elif not header.token_count or not header.document_count:
        fault = "this shard is empty"
    elif len(content) != file_bytes:
        fault = f"{len(content):,} bytes, expected {file_bytes:,} (cut short or grown)"
    if fault:
        raise DataError(f"{path}: {fault}; {REMEDY}")
    return header


def write_nanogpt_files(directory: Path) -> None:
    """Write train.bin and val.bin as nanoGPT reads them: all tokens of a split, uint16; existing ones are kept."""
    manifest = read_manifest(directory)
    vocab_size = manifest.tokenizer["vocab_size"]
    if vocab_size > NANOGPT_VOCABULARY:
        limit = f"format nanogpt holds ids below {NANOGPT_VOCABULARY:,}"
        raise ConfigError(f"{limit}, the tokenizer of {directory} has {vocab_size:,}; train from the shards instead")
    with files.locked(directory):
        for split in SPLITS:
            target = directory / f"{split}.bin"
            if target.exists() and target.stat().st_size == 2 * manifest.total(split, "tokens"):
                continue
            with files.atomic_file(target) as file:
                for record in manifest.shards[split]:
                    tokens = open_shard(directory / record.file)[1].tokens
                    file.write(np.asarray(tokens, dtype="<u2").data)
