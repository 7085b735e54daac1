"""The long part of a preparation: every piece of a source is encoded once and goes into a shard of its split."""

import shutil
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quillgpt.data.disk_space import Estimate, check_space, estimate
from quillgpt.data.document import EncodedPiece, Tally, TextSource, TokenSource
from quillgpt.data.encode import batches, encode_here, encode_in_processes
from quillgpt.data.manifest import SPLITS, TOKENIZER
from quillgpt.data.shard_writer import ShardWriter
from quillgpt.data.split import split_pieces
from quillgpt.data.work import Work, skip_finished
from quillgpt.tokenizer import Tokenizer

BYTES_PER_PROCESS = 1 << 23  # less text is encoded sooner than a process starts


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a preparation is, in bytes of text; the total is an estimate. The rate is that of this run alone."""

    bytes_done: int
    bytes_total: int
    documents: int
    bytes_per_second: float


@dataclass(frozen=True, kw_only=True)
class Means:
    """How a preparation works, none of which changes what it writes; processes 0: one for each core."""

    processes: int = 0
    progress: Callable[[Progress], None] = lambda progress: None
    disk_usage: Callable[[Path], Any] = shutil.disk_usage


def write_shards(
    source: TextSource | TokenSource,
    out: Path,
    work: Work,
    tokenizer: Tokenizer,
    *,
    limit: int,
    shard_tokens: int,
    means: Means,
) -> Tally:
    """Write the shards that `work` does not have yet, saving it after each; return what the source's pass met."""
    size = estimate(source, tokenizer, limit=limit)
    finished = [record for split in SPLITS for record in work.splits[split].shards]
    check_space(out, size.file_bytes - sum(record.file_bytes for record in finished), means.disk_usage)
    writers = {
        split: ShardWriter(out, split, tokenizer, shard_tokens=shard_tokens, done=work.splits[split])
        for split in SPLITS
    }
    meter = _Meter(means.progress, size, sum(record.text_bytes for record in finished))
    tally = Tally()
    encoded = _encoded(source, out, work, tokenizer, tally, limit=limit, processes=_processes(means, size))
    with closing(encoded):
        for pieces in encoded:
            for piece in pieces:
                if writers[piece.split].add(piece):
                    work.save(out)
            meter.add(pieces)
    for writer in writers.values():
        if writer.flush():
            work.save(out)
    return tally


def _encoded(
    source: TextSource | TokenSource,
    out: Path,
    work: Work,
    tokenizer: Tokenizer,
    tally: Tally,
    *,
    limit: int,
    processes: int,
) -> Generator[list[EncodedPiece], None, None]:
    """What no finished shard holds, a few pieces at a time."""
    if isinstance(source, TokenSource):
        for piece in skip_finished(source.encoded(tokenizer, tally), work, out):
            yield [piece]
        return
    assert work.rule is not None
    groups = batches(skip_finished(split_pieces(source, work.rule, tally, limit=limit), work, out))
    if processes == 1:
        yield from encode_here(groups, tokenizer)
    else:
        size = tokenizer.vocab_size
        yield from encode_in_processes(groups, out / TOKENIZER, vocab_size=size, processes=processes)


def _processes(means: Means, size: Estimate) -> int:
    useful = size.text_bytes // BYTES_PER_PROCESS
    if means.processes or useful <= 1:
        return means.processes or 1
    from quillgpt.hardware import available_cores  # it loads torch

    return min(available_cores(), useful)


class _Meter:
    """Adds up what is done and tells it."""

    def __init__(self, tell: Callable[[Progress], None], size: Estimate, bytes_before: int) -> None:
        self._tell = tell
        self._total = size.text_bytes
        self._before = bytes_before
        self._bytes = 0
        self._documents = 0
        self._started = time.perf_counter()

    def add(self, pieces: list[EncodedPiece]) -> None:
        """Count the pieces as done."""
        self._bytes += sum(piece.text_bytes for piece in pieces)
        self._documents += sum(piece.ends_document for piece in pieces)
        elapsed_seconds = time.perf_counter() - self._started
        self._tell(
            Progress(
                bytes_done=self._before + self._bytes,
                bytes_total=max(self._total, self._before + self._bytes),
                documents=self._documents,
                bytes_per_second=self._bytes / elapsed_seconds,
            )
        )
