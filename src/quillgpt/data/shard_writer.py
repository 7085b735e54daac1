"""Collects a split's tokens and writes a shard whenever enough are there."""

import dataclasses
from array import array
from pathlib import Path

import numpy as np

from quillgpt.data.document import EncodedPiece
from quillgpt.data.manifest import ShardRecord
from quillgpt.data.shard import token_dtype, write_shard
from quillgpt.data.work import SplitProgress, chained
from quillgpt.tokenizer import Tokenizer


class ShardWriter:
    """One split's shards; `progress` is what the finished ones hold, `ahead` also counts what waits in memory."""

    def __init__(
        self, directory: Path, split: str, tokenizer: Tokenizer, *, shard_tokens: int, done: SplitProgress
    ) -> None:
        self.progress = done
        self._ahead = dataclasses.replace(done)
        self._directory = directory
        self._split = split
        self._tokenizer = tokenizer
        self._shard_tokens = shard_tokens
        self._start()

    def add(self, piece: EncodedPiece) -> bool:
        """Take a piece; True when a shard was written with it."""
        self._tokens += piece.tokens.tobytes()
        self._count += len(piece.tokens)
        self._text_bytes += piece.text_bytes
        if piece.ends_document:
            self._ends.append(self._count)
        self._ahead.pieces += 1
        self._ahead.digest = chained(self._ahead.digest, piece.digest)
        if self._count < self._shard_tokens:
            return False
        self.flush()
        return True

    def flush(self) -> bool:
        """Write what waits, if anything, as a shard; a document that is not at its end continues in the next one."""
        if not self._count:
            return False
        if not self._ends or self._ends[-1] != self._count:
            self._ends.append(self._count)
        path = self._directory / f"{self._split}-{len(self.progress.shards):05d}.bin"
        sha256 = write_shard(
            path,
            np.frombuffer(self._tokens, dtype=token_dtype(self._tokenizer.vocab_size)),
            np.frombuffer(self._ends, dtype=np.int64),
            vocab_size=self._tokenizer.vocab_size,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
        )
        record = ShardRecord(
            file=path.name,
            tokens=self._count,
            documents=len(self._ends),
            text_bytes=self._text_bytes,
            file_bytes=path.stat().st_size,
            sha256=sha256,
        )
        self.progress.shards.append(record)
        self.progress.pieces, self.progress.digest = self._ahead.pieces, self._ahead.digest
        self._start()
        return True

    def _start(self) -> None:
        # Not lists: a shard of short documents would take hundreds of bytes for each of them.
        self._tokens = bytearray()
        self._ends = array("q")
        self._count = 0
        self._text_bytes = 0
