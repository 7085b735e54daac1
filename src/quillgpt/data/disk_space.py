"""How large prepared data will be, so that a disk too small is said before the work and not after it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quillgpt.data.document import Tally, TextSource, TokenSource, pieces
from quillgpt.data.shard import token_dtype
from quillgpt.errors import DiskError
from quillgpt.tokenizer import Tokenizer

SAMPLE_BYTES = 1 << 20
MARGIN = 1.1


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """About how many bytes of text a source has, and how many its shards will take on the disk."""

    text_bytes: int
    file_bytes: int


def estimate(source: TextSource | TokenSource, tokenizer: Tokenizer, *, limit: int) -> Estimate:
    """Measure the source's first megabyte with the tokenizer and scale it to the source's size."""
    text_bytes = source.text_bytes()
    token_bytes = token_dtype(tokenizer.vocab_size).itemsize
    if isinstance(source, TokenSource):
        return Estimate(text_bytes=text_bytes, file_bytes=text_bytes)
    sample_bytes = sample_tokens = documents = 0
    for piece in pieces(source, Tally(), limit=limit):
        sample_bytes += len(piece.text.encode())
        sample_tokens += len(tokenizer.encode_array(piece.text)) + 1
        documents += piece.ends_document
        if sample_bytes >= SAMPLE_BYTES:
            break
    else:
        return Estimate(text_bytes=sample_bytes, file_bytes=sample_tokens * token_bytes)
    if limit and documents:
        text_bytes = min(text_bytes, limit * sample_bytes // documents)
    return Estimate(text_bytes=text_bytes, file_bytes=text_bytes * sample_tokens * token_bytes // sample_bytes)


def check_space(directory: Path, needed_bytes: int, usage: Callable[[Path], shutil._ntuple_diskusage]) -> None:
    """Refuse to begin what will not fit; `usage` is `shutil.disk_usage`."""
    free = usage(directory).free
    needed = int(needed_bytes * MARGIN)
    if free < needed:
        have = f"needs about {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free there"
        raise DiskError(f"{directory}: {have}; free some space, choose another directory, or limit it with --documents")
