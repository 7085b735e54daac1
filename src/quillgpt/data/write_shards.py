"""The long part of `prepare`: every chunk of a source is encoded once and written into a shard of its split.

`work.json` says how far a preparation is. It is replaced after every shard and deleted when the manifest exists.
"""

import dataclasses
import hashlib
import shutil
from array import array
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quillgpt import files
from quillgpt.data.document import (
    DataSource,
    EncodedChunk,
    SourceStats,
    SplitChunk,
    SplitRule,
    TextSource,
    TokenSource,
    split_chunks,
    text_chunks,
)
from quillgpt.data.encode import EncodedBatches, batches, encode_here, encode_in_processes
from quillgpt.data.shards import (
    REMEDY,
    SPLITS,
    TOKENIZER,
    WORK,
    ShardRecord,
    read_json_object,
    token_dtype,
    write_shard,
)
from quillgpt.errors import DataError, DiskError
from quillgpt.progress import Progress
from quillgpt.tokenizer import Tokenizer

SAMPLE_BYTES = 1 << 20
SIZE_MARGIN = 1.1
BYTES_PER_PROCESS = 1 << 23  # encoding less text takes less time than starting a process
DESCRIPTION = "encoding bytes of text"
NO_CHUNKS = bytes(32).hex()

AnyChunk = TypeVar("AnyChunk", SplitChunk, EncodedChunk)


@dataclass(kw_only=True)
class SplitState:
    """What a split's finished shards contain: their records, the number of chunks, and the digest of these chunks."""

    shards: list[ShardRecord] = field(default_factory=list)
    chunks: int = 0
    digest: str = NO_CHUNKS

    def add(self, chunk_digest: bytes) -> None:
        """Count a chunk and add it to the digest."""
        self.chunks += 1
        self.digest = chained(self.digest, chunk_digest)


@dataclass(kw_only=True)
class PrepareState:
    """What a preparation has decided, and the state of each split."""

    settings: dict[str, Any]
    tokenizer: str = ""
    rule: SplitRule | None = None
    splits: dict[str, SplitState] = field(default_factory=lambda: {split: SplitState() for split in SPLITS})

    @property
    def records(self) -> list[ShardRecord]:
        """The finished shards of both splits."""
        return [record for split in self.splits.values() for record in split.shards]

    def save(self, directory: Path) -> None:
        """Replace the directory's work.json."""
        files.write_json(directory / WORK, dataclasses.asdict(self))


def read_state(directory: Path) -> PrepareState | None:
    """Read the state of an interrupted preparation; None if there is none."""
    content = read_json_object(directory / WORK)
    if content is None:
        return None
    try:
        splits = {split: _split_state(**content["splits"][split]) for split in SPLITS}
        rule = SplitRule(**content["rule"]) if content["rule"] else None
        return PrepareState(settings=content["settings"], tokenizer=content["tokenizer"], rule=rule, splits=splits)
    except (KeyError, TypeError) as error:
        raise DataError(f"{directory / WORK}: damaged ({error}); {REMEDY}") from None


def _split_state(shards: list[dict[str, Any]], chunks: int, digest: str) -> SplitState:
    return SplitState(shards=[ShardRecord(**record) for record in shards], chunks=chunks, digest=digest)


def chained(digest: str, chunk_digest: bytes) -> str:
    """Return the digest of a series of chunks after one more."""
    return hashlib.sha256(bytes.fromhex(digest) + chunk_digest).hexdigest()


def write_shards(
    source: DataSource, out: Path, state: PrepareState, tokenizer: Tokenizer, *, processes: int, progress: Progress
) -> SourceStats:
    """Write the shards that `state` does not have yet, saving it after each; return what the source's pass met."""
    limit, shard_tokens = state.settings["documents"], state.settings["shard_tokens"]
    text_bytes, file_bytes = estimate(source, tokenizer, limit=limit)
    check_space(out, file_bytes - sum(record.file_bytes for record in state.records))
    writers = {
        split: ShardWriter(out, split, tokenizer, shard_tokens=shard_tokens, state=state.splits[split])
        for split in SPLITS
    }
    stats = SourceStats()
    if isinstance(source, TextSource):
        assert state.rule is not None
        groups = batches(skip_finished(split_chunks(source, state.rule, stats, limit=limit), state, out))
        count = process_count(processes, text_bytes)
        size = tokenizer.vocab_size
        encoded: EncodedBatches = (
            encode_here(groups, tokenizer)
            if count == 1
            else encode_in_processes(groups, out / TOKENIZER, vocab_size=size, processes=count)
        )
    else:
        assert isinstance(source, TokenSource)
        encoded = ([chunk] for chunk in skip_finished(source.encoded(tokenizer, stats), state, out))
    done = sum(record.text_bytes for record in state.records)
    progress(DESCRIPTION, done, max(text_bytes, done))
    with closing(encoded):
        for chunks in encoded:
            for chunk in chunks:
                if writers[chunk.split].add(chunk):
                    state.save(out)
            done += sum(chunk.text_bytes for chunk in chunks)
            progress(DESCRIPTION, done, max(text_bytes, done))
    for writer in writers.values():
        if writer.flush():
            state.save(out)
    return stats


def estimate(source: DataSource, tokenizer: Tokenizer, *, limit: int) -> tuple[int, int]:
    """Estimate the bytes of a source's text and of its shards, from the tokens of its first megabyte."""
    text_bytes = source.text_bytes()
    if not isinstance(source, TextSource):
        return text_bytes, text_bytes
    token_bytes = token_dtype(tokenizer.vocab_size).itemsize
    sample_bytes = sample_tokens = documents = 0
    for text, ends_document in text_chunks(source, SourceStats(), limit=limit):
        sample_bytes += len(text.encode())
        sample_tokens += len(tokenizer.encode_array(text)) + 1
        documents += ends_document
        if sample_bytes >= SAMPLE_BYTES:
            break
    else:
        return sample_bytes, sample_tokens * token_bytes
    if limit and documents:
        text_bytes = min(text_bytes, limit * sample_bytes // documents)
    return text_bytes, text_bytes * sample_tokens * token_bytes // sample_bytes


def check_space(directory: Path, needed_bytes: int) -> None:
    """Raise a `DiskError` if the files will not fit on the disk."""
    free = shutil.disk_usage(directory).free
    needed = int(needed_bytes * SIZE_MARGIN)
    if free < needed:
        got = f"needs about {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free there"
        raise DiskError(f"{directory}: {got}; free some space, choose another directory, or limit it with --documents")


def process_count(processes: int, text_bytes: int) -> int:
    """Return the number of encoding processes; 0 becomes one per core, but not more than the text is worth."""
    useful = text_bytes // BYTES_PER_PROCESS
    if processes or useful <= 1:
        return processes or 1
    from quillgpt.runtime import available_cores  # it loads torch

    return min(available_cores(), useful)


def skip_finished(chunks: Iterable[AnyChunk], state: PrepareState, directory: Path) -> Iterator[AnyChunk]:
    """Yield the chunks that are in no finished shard, after checking that the others have not changed."""
    finished = {split: dataclasses.replace(state.splits[split]) for split in SPLITS}  # the state grows meanwhile
    seen = {split: SplitState() for split in SPLITS}
    changed = DataError(f"{directory}: the text is not the one that was begun with; {REMEDY}")
    for chunk in chunks:
        before, passed = finished[chunk.split], seen[chunk.split]
        if passed.chunks == before.chunks:
            yield chunk
            continue
        passed.add(chunk.digest)
        if passed.chunks == before.chunks and passed.digest != before.digest:
            raise changed
    if any(seen[split].chunks != finished[split].chunks for split in SPLITS):
        raise changed


class ShardWriter:
    """Collects a split's tokens in memory and writes a shard when there are enough; `state` is of the finished ones."""

    def __init__(
        self, directory: Path, split: str, tokenizer: Tokenizer, *, shard_tokens: int, state: SplitState
    ) -> None:
        self._state = state
        self._pending = dataclasses.replace(state)  # also counts what is in memory
        self._directory = directory
        self._split = split
        self._tokenizer = tokenizer
        self._shard_tokens = shard_tokens
        self._clear()

    def add(self, chunk: EncodedChunk) -> bool:
        """Add a chunk; return whether a shard was written."""
        self._tokens += chunk.tokens.tobytes()
        self._count += len(chunk.tokens)
        self._text_bytes += chunk.text_bytes
        if chunk.ends_document:
            self._ends.append(self._count)
        self._pending.add(chunk.digest)
        return self._count >= self._shard_tokens and self.flush()

    def flush(self) -> bool:
        """Write the collected tokens, if any, as a shard; a document that has not ended continues in the next one."""
        if not self._count:
            return False
        if not self._ends or self._ends[-1] != self._count:
            self._ends.append(self._count)
        path = self._directory / f"{self._split}-{len(self._state.shards):05d}.bin"
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
        self._state.shards.append(record)
        self._state.chunks, self._state.digest = self._pending.chunks, self._pending.digest
        self._clear()
        return True

    def _clear(self) -> None:
        # Not lists: a shard of short documents would take hundreds of bytes for each of them.
        self._tokens = bytearray()
        self._ends = array("q")
        self._count = 0
        self._text_bytes = 0
