"""Pieces of text become tokens, in order, in as many processes as there are cores.

A worker process (`encode_worker.py`) reads batches from its standard input and answers on its standard output,
so that it ends by itself when this process does, however that ends. A thread for each worker waits for its answers.
"""

import contextlib
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np

from quillgpt.data.document import EncodedPiece
from quillgpt.data.shard import checked_tokens, token_dtype
from quillgpt.data.split import SplitPiece
from quillgpt.errors import DataError, OutOfMemory
from quillgpt.tokenizer import Tokenizer

BATCH_BYTES = 1 << 19
BATCH_PIECES = 4096
WAITING_PER_WORKER = 2
OK = b"ok"

Batch = list[SplitPiece]


def batches(pieces: Iterable[SplitPiece]) -> Iterator[Batch]:
    """Group the pieces so that each group is worth sending to another process."""
    batch: Batch = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.content)
        if size >= BATCH_BYTES or len(batch) >= BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_here(batches: Iterable[Batch], tokenizer: Tokenizer) -> Iterator[list[EncodedPiece]]:
    """Encode the batches in this process."""
    for batch in batches:
        yield _encoded(batch, [encode_piece(tokenizer, piece.content, piece.ends_document) for piece in batch])


def encode_in_processes(
    batches: Iterable[Batch], tokenizer_file: Path, *, vocab_size: int, processes: int
) -> Iterator[list[EncodedPiece]]:
    """Encode the batches in worker processes; at most a few per worker are in memory at a time."""
    workers = [Worker(tokenizer_file, vocab_size) for _ in range(processes)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def encode(batch: Batch) -> list[EncodedPiece]:
        worker = idle.get()
        try:
            return worker.encode(batch)
        finally:
            idle.put(worker)  # a dead one too, or the next thread would wait for it for ever

    waiting: deque[Future[list[EncodedPiece]]] = deque()
    threads = ThreadPoolExecutor(processes)
    try:
        for batch in batches:
            waiting.append(threads.submit(encode, batch))
            if len(waiting) >= processes * WAITING_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for worker in workers:
            worker.stop()  # a thread that still waits for an answer sees its worker end
        threads.shutdown(wait=True, cancel_futures=True)


def encode_piece(tokenizer: Tokenizer, content: bytes, ends_document: bool) -> np.ndarray:
    """The tokens of a piece in the vocabulary's dtype, with end of text where its document ends."""
    tokens = tokenizer.encode_array(content.decode())
    if ends_document:
        tokens = np.append(tokens, np.uint32(tokenizer.end_of_text))
    return checked_tokens(tokens, tokenizer.vocab_size)


class Worker:
    """A process that encodes."""

    def __init__(self, tokenizer_file: Path, vocab_size: int) -> None:
        self._dtype = token_dtype(vocab_size)
        # Not multiprocessing: it would run the user's script again, or fork a process that has threads.
        start = f"import sys; sys.path[:] = {sys.path!r}; from quillgpt.data.encode_worker import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, str(tokenizer_file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def encode(self, batch: Batch) -> list[EncodedPiece]:
        """Send a batch and wait for its tokens."""
        ends = bytes(piece.ends_document for piece in batch)
        try:
            send(self._requests, ends, *(piece.content for piece in batch))
            answer = receive(self._answers)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise self._death()
        status, *content = answer
        if status != OK:
            raise DataError(status.decode())
        return _encoded(batch, [np.frombuffer(tokens, dtype=self._dtype) for tokens in content])

    def stop(self) -> None:
        """End the process, also in the middle of a batch."""
        self._process.kill()
        self._process.wait()
        self._answers.close()
        with contextlib.suppress(BrokenPipeError):  # what was buffered for it when it died
            self._requests.close()

    def _death(self) -> Exception:
        code = self._process.wait()
        message = f"an encoding process ended unexpectedly (exit status {code})"
        if code == -9:
            return OutOfMemory(f"{message}, killed perhaps for lack of memory; run it again with fewer --processes")
        return RuntimeError(message)


def send(pipe: IO[bytes], *parts: bytes) -> None:
    """Write a message: the number of its parts, their sizes, the parts."""
    pipe.write(struct.pack(f"<{1 + len(parts)}Q", len(parts), *map(len, parts)) + b"".join(parts))
    pipe.flush()


def receive(pipe: IO[bytes]) -> list[bytes] | None:
    """Read a message's parts; None when the other side is gone."""
    head = pipe.read(8)
    if len(head) < 8:
        return None
    (count,) = struct.unpack("<Q", head)
    sizes = struct.unpack(f"<{count}Q", pipe.read(8 * count))
    parts = [pipe.read(size) for size in sizes]
    return parts if [len(part) for part in parts] == list(sizes) else None


def _encoded(batch: Batch, tokens: list[np.ndarray]) -> list[EncodedPiece]:
    return [
        EncodedPiece(piece.split, array, piece.ends_document, len(piece.content), piece.digest)
        for piece, array in zip(batch, tokens, strict=True)
    ]
