"""One file of tokens: a header that says what is in it, the tokens, and where each document ends.

    header (128 bytes) | token_count tokens, uint16 or uint32 | padding to 8 bytes | document_count ends, int64

Everything is little-endian. The checksum is the SHA-256 of the file with the checksum's own bytes set to zero.
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quillgpt import files
from quillgpt.data.manifest import REMEDY
from quillgpt.errors import DataError

MAGIC = b"QUILLTOK"
VERSION = 1
# magic, version, bytes of a token, tokens, documents, vocabulary size, largest token, tokenizer fingerprint, checksum
HEADER = struct.Struct("<8sIIQQQQ32s32s")
HEADER_BYTES = 128
SHARD_TOKENS = 1 << 25  # 64 MiB of uint16; both splits' unfinished shards are in memory while preparing
CHECKSUM_START = HEADER.size - 32
DTYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


@dataclass(frozen=True, kw_only=True)
class ShardHeader:
    """What a shard says about itself; fingerprint and checksum are hex."""

    token_bytes: int
    token_count: int
    document_count: int
    vocab_size: int
    largest_token: int
    tokenizer_fingerprint: str
    checksum: str

    @property
    def ends_start(self) -> int:
        """Byte at which the document ends begin."""
        tokens_end = HEADER_BYTES + self.token_count * self.token_bytes
        return tokens_end + -tokens_end % 8

    @property
    def file_bytes(self) -> int:
        """The size the whole file must have."""
        return self.ends_start + 8 * self.document_count


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Tokens of whole documents, mapped from a file.

    tokens: length n, uint16 or uint32. document_ends: int64, ascending, the last one is n. A document longer than a
    shard continues in the next one and counts there as another.
    """

    path: Path
    tokens: np.ndarray
    document_ends: np.ndarray


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every token of the vocabulary fits, otherwise uint32."""
    return DTYPES[2] if vocab_size <= 1 << 16 else DTYPES[4]


def checked_tokens(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The tokens in the vocabulary's dtype; one outside the vocabulary is an error (a plain cast would wrap it)."""
    if len(tokens) and (int(tokens.max()) >= vocab_size or int(tokens.min()) < 0):
        wrong = int(tokens.max()) if int(tokens.max()) >= vocab_size else int(tokens.min())
        raise DataError(
            f"token {wrong} is outside the vocabulary of {vocab_size:,} tokens; use the tokenizer it came from"
        )
    return tokens.astype(token_dtype(vocab_size), copy=False)


def write_shard(
    path: Path, tokens: np.ndarray, document_ends: np.ndarray, *, vocab_size: int, tokenizer_fingerprint: str
) -> str:
    """Write a shard by one rename and return the file's SHA-256 (hex)."""
    assert len(tokens) > 0
    assert int(document_ends[-1]) == len(tokens)
    tokens = checked_tokens(tokens, vocab_size)
    header = ShardHeader(
        token_bytes=tokens.itemsize,
        token_count=len(tokens),
        document_count=len(document_ends),
        vocab_size=vocab_size,
        largest_token=int(tokens.max()),
        tokenizer_fingerprint=tokenizer_fingerprint,
        checksum="00" * 32,
    )
    padding = bytes(header.ends_start - HEADER_BYTES - tokens.nbytes)
    parts = [tokens.data.cast("B"), padding, document_ends.astype("<i8").tobytes()]
    digest = hashlib.sha256(_packed(header))
    for part in parts:
        digest.update(part)
    with files.atomic_file(path) as file:
        file.write(_packed(header, checksum=digest.digest()))
        for part in parts:
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
    tokens_end = HEADER_BYTES + header.token_count * header.token_bytes
    tokens = content[HEADER_BYTES:tokens_end].view(DTYPES[header.token_bytes])
    ends = content[header.ends_start :].view("<i8")
    if int(ends[-1]) != header.token_count:
        raise DataError(f"{path}: its last document ends at {ends[-1]}, expected {header.token_count}; {REMEDY}")
    return header, Shard(path=path, tokens=tokens, document_ends=ends)


def verify_shard(header: ShardHeader, shard: Shard) -> None:
    """Read a shard whole and compare it with its header: checksum, largest token, document ends in order."""
    digest = hashlib.sha256()
    with shard.path.open("rb") as file:
        start = file.read(HEADER_BYTES)
        digest.update(start[:CHECKSUM_START] + bytes(32) + start[HEADER.size :])
        while chunk := file.read(files.CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != header.checksum:
        raise DataError(f"{shard.path}: damaged: its content does not have the checksum of its header; {REMEDY}")
    largest = int(shard.tokens.max())
    if largest >= header.vocab_size:
        where = int(shard.tokens.argmax())
        raise DataError(
            f"{shard.path}: token {largest} at {where} is outside its vocabulary of {header.vocab_size}; {REMEDY}"
        )
    if np.any(np.diff(shard.document_ends, prepend=0) <= 0):
        raise DataError(f"{shard.path}: its document ends are not ascending; {REMEDY}")


def _packed(header: ShardHeader, *, checksum: bytes = bytes(32)) -> bytes:
    numbers = (header.token_count, header.document_count, header.vocab_size, header.largest_token)
    fingerprint = bytes.fromhex(header.tokenizer_fingerprint)
    packed = HEADER.pack(MAGIC, VERSION, header.token_bytes, *numbers, fingerprint, checksum)
    return packed.ljust(HEADER_BYTES, b"\0")


def _read_header(path: Path, content: np.ndarray) -> ShardHeader:
    if len(content) < HEADER_BYTES or bytes(content[:8]) != MAGIC:
        raise DataError(
            f"{path}: not a quill shard (it has no header); for nanoGPT's .bin files use `quill prepare nanogpt`"
        )
    _, version, token_bytes, *numbers, fingerprint, checksum = HEADER.unpack(bytes(content[: HEADER.size]))
    if version != VERSION:
        raise DataError(f"{path}: shard format {version}, this quill reads {VERSION}; {REMEDY}")
    token_count, document_count, vocab_size, largest_token = numbers
    if token_bytes not in DTYPES or DTYPES[token_bytes] != token_dtype(vocab_size):
        expected = token_dtype(vocab_size).itemsize
        raise DataError(f"{path}: {token_bytes} bytes a token, a vocabulary of {vocab_size:,} has {expected}; {REMEDY}")
    if largest_token >= vocab_size:
        raise DataError(f"{path}: token {largest_token} is outside its vocabulary of {vocab_size:,}; {REMEDY}")
    header = ShardHeader(
        token_bytes=token_bytes,
        token_count=token_count,
        document_count=document_count,
        vocab_size=vocab_size,
        largest_token=largest_token,
        tokenizer_fingerprint=fingerprint.hex(),
        checksum=checksum.hex(),
    )
    if not token_count or not document_count:
        raise DataError(f"{path}: this shard is empty; {REMEDY}")
    if len(content) != header.file_bytes:
        raise DataError(
            f"{path}: {len(content):,} bytes, expected {header.file_bytes:,} (cut short or grown); {REMEDY}"
        )
    return header
