"""Encoding chunks of text to tokens, in order, in this process or in one process per core.

A worker process reads batches of chunks from its standard input and writes their tokens to its standard output, so it
ends when this process does, however that ends. A thread for each worker waits for its answers.
"""

import contextlib
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np

from quillgpt.data.document import EncodedChunk, SplitChunk
from quillgpt.data.shards import checked_tokens, token_dtype
from quillgpt.errors import DataError, OutOfMemory
from quillgpt.tokenizer import Tokenizer, load_tokenizer

BATCH_BYTES = 1 << 19
BATCH_CHUNKS = 4096
QUEUED_BATCHES_PER_WORKER = 2
OK = b"ok"

Batch = list[SplitChunk]
EncodedBatches = Generator[list[EncodedChunk], None, None]


def batches(chunks: Iterable[SplitChunk]) -> Iterator[Batch]:
    """Group the chunks so that each group is worth sending to another process."""
    batch: Batch = []
    size = 0
    for chunk in chunks:
        batch.append(chunk)
        size += len(chunk.content)
        if size >= BATCH_BYTES or len(batch) >= BATCH_CHUNKS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_here(batches: Iterable[Batch], tokenizer: Tokenizer) -> EncodedBatches:
    """Encode the batches in this process."""
    for batch in batches:
        yield _encoded(batch, [encode_chunk(tokenizer, chunk.content, chunk.ends_document) for chunk in batch])


def encode_in_processes(
    batches: Iterable[Batch], tokenizer_file: Path, *, vocab_size: int, processes: int
) -> EncodedBatches:
    """Encode the batches in worker processes; at most a few per worker are in memory at a time."""
    workers = [Worker(tokenizer_file, vocab_size) for _ in range(processes)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def encode(batch: Batch) -> list[EncodedChunk]:
        worker = idle.get()
        try:
            return worker.encode(batch)
        finally:
            idle.put(worker)  # a dead one too, or the next thread would wait for it forever

    queued: deque[Future[list[EncodedChunk]]] = deque()
    threads = ThreadPoolExecutor(processes)
    try:
        for batch in batches:
            queued.append(threads.submit(encode, batch))
            if len(queued) >= processes * QUEUED_BATCHES_PER_WORKER:
                yield queued.popleft().result()
        while queued:
            yield queued.popleft().result()
    finally:
        for worker in workers:
            worker.stop()  # a thread that still waits for an answer sees its worker end
        threads.shutdown(wait=True, cancel_futures=True)


def encode_chunk(tokenizer: Tokenizer, content: bytes, ends_document: bool) -> np.ndarray:
    """Return the tokens of a chunk in the vocabulary's dtype, with an end of text if its document ends."""
    tokens = tokenizer.encode_array(content.decode())
    if ends_document:
        tokens = np.append(tokens, np.uint32(tokenizer.end_of_text))
    return checked_tokens(tokens, tokenizer.vocab_size)


class Worker:
    """A process that encodes."""

    def __init__(self, tokenizer_file: Path, vocab_size: int) -> None:
        self._dtype = token_dtype(vocab_size)
        # Not multiprocessing: it would run the user's script again, or fork a process that has threads.
        start = f"import sys; sys.path[:] = {sys.path!r}; from quillgpt.data.encode import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, str(tokenizer_file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def encode(self, batch: Batch) -> list[EncodedChunk]:
        """Send a batch and wait for its tokens."""
        ends = bytes(chunk.ends_document for chunk in batch)
        try:
            send(self._requests, ends, *(chunk.content for chunk in batch))
            answer = receive(self._answers)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise self._exit_error()
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

    def _exit_error(self) -> Exception:
        code = self._process.wait()
        message = f"an encoding process ended unexpectedly (exit status {code})"
        if code == -9:  # SIGKILL, which Windows does not have
            return OutOfMemory(f"{message}, perhaps killed for lack of memory; run it again with fewer --processes")
        return RuntimeError(message)


def main() -> None:
    """Run a worker process: encode until standard input ends; the last argument is the tokenizer.json."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process group; the parent decides
    tokenizer = load_tokenizer(Path(sys.argv[-1]))
    while (message := receive(sys.stdin.buffer)) is not None:
        ends, *contents = message
        try:
            tokens = [encode_chunk(tokenizer, content, bool(end)) for content, end in zip(contents, ends, strict=True)]
        except DataError as error:
            send(sys.stdout.buffer, str(error).encode())
            continue
        send(sys.stdout.buffer, OK, *(array.tobytes() for array in tokens))


def send(pipe: IO[bytes], *parts: bytes) -> None:
    """Write a message: the number of its parts, their sizes, the parts."""
    pipe.write(struct.pack(f"<{1 + len(parts)}Q", len(parts), *map(len, parts)) + b"".join(parts))
    pipe.flush()


def receive(pipe: IO[bytes]) -> list[bytes] | None:
    """Read a message's parts; None if the other side is gone."""
    head = pipe.read(8)
    if len(head) < 8:
        return None
    (count,) = struct.unpack("<Q", head)
    sizes = struct.unpack(f"<{count}Q", pipe.read(8 * count))
    parts = [pipe.read(size) for size in sizes]
    return parts if [len(part) for part in parts] == list(sizes) else None


def _encoded(batch: Batch, tokens: list[np.ndarray]) -> list[EncodedChunk]:
    return [
        EncodedChunk(chunk.split, array, chunk.ends_document, len(chunk.content), chunk.digest)
        for chunk, array in zip(batch, tokens, strict=True)
    ]


if __name__ == "__main__":
    main()
