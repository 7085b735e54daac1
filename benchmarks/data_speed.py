"""The speed of preparing text and of loading batches, each against a lower bound measured in the same run.

    TIKTOKEN_CACHE_DIR=../shared/data/tiktoken-cache python benchmarks/data_speed.py prepare
    python benchmarks/data_speed.py prepare --megabytes 1000     # the memory stays the same
    python benchmarks/data_speed.py loader

`quill bench data` measures the data of a recipe.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import measuring
import numpy as np
import tiktoken
import torch
from measuring import seconds_of

from quillgpt.config import DataConfig
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.document import SourceStats
from quillgpt.data.loader import BatchLoader, BatchSchedule
from quillgpt.data.order import DOCUMENTS, permutation
from quillgpt.data.shards import open_shard, write_shard
from quillgpt.data.sources.python import PythonLibrary
from quillgpt.runtime import available_cores

GOAL = 4.0
TIKTOKEN_BYTES = 16_000_000
POLL_SECONDS = 0.02
TOKENS, DOCUMENT_COUNT, VOCAB_SIZE = 50_000_000, 50_000, 50257
SHAPES = [(32, 256), (12, 1024), (480, 1024)]  # rows, context_length
MAX_SECONDS = 2.0


def prepare(megabytes: int = 64, processes: tuple[int, ...] = (1, available_cores())) -> None:
    """The rate of `quill prepare` with GPT-2's BPE, against tiktoken alone on the same text.

    The text is Python's standard library, repeated, each document with another first line, in one JSON lines file. The
    time is that of the command: reading, JSON, splitting, hashing, encoding, writing, checking. The rate of a core is
    the text over time and processes; and over the processor time, which other work on the machine disturbs less. The
    goal is at least 4 MB/s per core and less than 1 GB.

    Args:
        megabytes: size of the text
        processes: numbers of encoding processes
    """
    measuring.print_machine()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.jsonl"
        size = write_text(path, megabytes) / 1e6
        before = tiktoken_rate(path)
        measured = {count: run_prepare(path, Path(folder) / f"data{count}", count) for count in sorted({*processes})}
        bare = (before + tiktoken_rate(path)) / 2
    print(f"{size:,.0f} MB of text; tiktoken alone, 1 thread: {bare:5.2f} MB/s (mean of before and after)")
    for count, (seconds, processor_seconds, memory) in measured.items():
        rate, by_processor = size / seconds / count, size / processor_seconds
        print(
            f"quill prepare, encoding in {count:2}: {rate:5.2f} MB/s per core ({rate / bare:.2f} of tiktoken alone); "
            f"{by_processor:5.2f} MB per second of processor time ({by_processor / bare:.2f}); {seconds:.1f} s; "
            f"peak {memory / 1e6:,.0f} MB in all processes; goal {GOAL} MB/s: {'met' if rate >= GOAL else 'NOT met'}"
        )


def write_text(path: Path, megabytes: int) -> int:
    """Write the JSON lines; return the bytes of their text."""
    written, source = 0, PythonLibrary(DataConfig(source="python"))
    documents = itertools.chain.from_iterable(source.documents(SourceStats()) for _ in itertools.count())
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1_000_000:
            text = f"# document at byte {written}\n{''.join(next(documents))}"
            written += len(text.encode())
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return written


def tiktoken_rate(path: Path) -> float:
    """MB/s of tiktoken with one thread, on the first texts, in memory."""
    encoding = tiktoken.get_encoding("gpt2")
    texts, size = [], 0
    with path.open(encoding="utf-8") as file:
        while size < TIKTOKEN_BYTES and (line := file.readline()):
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
    encoding.encode_to_numpy(texts[0], disallowed_special=())
    seconds = sum(seconds_of(partial(encoding.encode_to_numpy, text, disallowed_special=())) for text in texts)
    return size / 1e6 / seconds


def run_prepare(path: Path, out: Path, processes: int) -> tuple[float, float, int]:
    """Run `quill prepare`; return seconds, processor seconds, and the peak memory of its processes in bytes."""
    arguments = ["prepare", "jsonl", "--path", str(path), "--out", str(out), "--processes", str(processes)]
    started = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = subprocess.Popen([sys.executable, "-m", "quillgpt", *arguments], **quiet)
    peak = 0
    while (ended := os.wait4(command.pid, os.WNOHANG))[0] == 0:
        peak = max(peak, memory_of_tree(command.pid))
        time.sleep(POLL_SECONDS)
    _, status, used = ended
    seconds, command.returncode = time.perf_counter() - started, os.waitstatus_to_exitcode(status)
    if command.returncode:
        sys.exit(f"quill prepare ended with exit code {command.returncode}")
    return seconds, used.ru_utime + used.ru_stime, peak


def memory_of_tree(process: int) -> int:
    """Resident bytes of a process and its descendants, on Linux; shared memory counts for each."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(memory_of_tree(int(child)) for child in children)


def loader() -> None:
    """The time to read a batch, against a slice of the file and against sequences at random offsets.

    The tokens are in a temporary file in the system's file cache. All return int64 tensors of the same shape.
    """
    measuring.print_machine(threads=1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "train-00000.bin"
        dataset = make_dataset(path, shard_count=1)
        tokens = np.asarray(dataset.shards[0].tokens)
        print(f"{TOKENS:,} tokens in {DOCUMENT_COUNT:,} documents; numpy {np.__version__}")
        print("batch        loader ms   tokens/s   x plain slice   x random rows")
        for rows, length in SHAPES:
            own = milliseconds(make_loader(dataset, rows, length).batch)
            plain = milliseconds(lambda step, r=rows, t=length: plain_slice(tokens, step, r, t))
            crops = milliseconds(lambda step, r=rows, t=length: random_rows(tokens, step, r, t))
            rate = rows * length / own * 1e3
            print(f"{f'{rows}x{length}':<12} {own:9.3f} {rate:10.2e} {own / plain:15.1f} {own / crops:15.2f}")
        order = milliseconds(lambda step: permutation(100_000, seed=1, purpose=DOCUMENTS, epoch=step))
        print(f"order of a shard of 100,000 documents: {order:.1f} ms")
        seek = seconds_of(lambda: make_loader(make_dataset(path, shard_count=2000), 480, 1024).batch(10**6))
        print(f"open and seek to step 1,000,000 of 2,000 shards: {seek:.3f} s")


def make_dataset(path: Path, shard_count: int) -> TokenDataset:
    """A data set of shards that are all the same file of random tokens, in documents of random length."""
    generator = np.random.default_rng(0)
    ends = np.append(np.sort(generator.choice(TOKENS - 1, DOCUMENT_COUNT - 1, replace=False)) + 1, TOKENS)
    if not path.exists():
        tokens = generator.integers(0, VOCAB_SIZE, TOKENS, dtype=np.uint16)
        write_shard(path, tokens, ends, vocab_size=VOCAB_SIZE, tokenizer_fingerprint="00" * 32)
    _, shard = open_shard(path)
    return replace(TokenDataset.from_documents([[0]], VOCAB_SIZE), shards=[shard] * shard_count)


def make_loader(dataset: TokenDataset, rows: int, context_length: int) -> BatchLoader:
    schedule = BatchSchedule(context_length=context_length, global_batch_size=rows)
    return BatchLoader(dataset, context_length=context_length, schedule=schedule, seed=1)


def plain_slice(tokens: np.ndarray, step: int, rows: int, context_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    start = step * rows * context_length % (len(tokens) - rows * context_length - 1)
    part = tokens[start : start + rows * context_length + 1].astype(np.int64)
    return torch.from_numpy(part[:-1]).view(rows, -1), torch.from_numpy(part[1:]).view(rows, -1)


def random_rows(tokens: np.ndarray, step: int, rows: int, context_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    starts = np.random.default_rng(step).integers(0, len(tokens) - context_length - 1, rows)
    inputs, targets = (
        torch.stack([torch.from_numpy(tokens[s : s + context_length].astype(np.int64)) for s in starts + shift])
        for shift in (0, 1)
    )
    return inputs, targets


def milliseconds(batch: Callable[[int], object]) -> float:
    """Median over steps, after one warm-up step."""
    batch(0)
    seconds, started = [], time.perf_counter()
    for step in range(1, 2000):
        seconds.append(seconds_of(partial(batch, step)))
        if time.perf_counter() - started > MAX_SECONDS:
            break
    return float(np.median(seconds)) * 1e3


if __name__ == "__main__":
    measuring.run_script(__doc__, {"prepare": prepare, "loader": loader})
