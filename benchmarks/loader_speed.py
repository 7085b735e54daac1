"""How fast batches are read, against a plain slice of the file and against rows from random places, in one run.

    python benchmarks/loader_speed.py

The tokens lie in a temporary file that the system's file cache holds. Every way gives int64 tensors of one shape.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from quillgpt.data.loader import BatchLoader, BatchSchedule
from quillgpt.data.order import DOCUMENTS, permutation
from quillgpt.data.shard import open_shard, write_shard
from quillgpt.data.token_dataset import TokenDataset

TOKENS = 50_000_000
DOCUMENT_COUNT = 50_000
VOCAB_SIZE = 50257
SHAPES = [(32, 256), (12, 1024), (480, 1024)]  # rows, context_length
MOST_SECONDS = 2.0


def make_dataset(path: Path, shard_count: int) -> TokenDataset:
    """A data set of so many shards, all of them one file of random tokens in documents of random length."""
    random = np.random.default_rng(0)
    ends = np.append(np.sort(random.choice(TOKENS - 1, DOCUMENT_COUNT - 1, replace=False)) + 1, TOKENS)
    if not path.exists():
        tokens = random.integers(0, VOCAB_SIZE, TOKENS, dtype=np.uint16)
        write_shard(path, tokens, ends, vocab_size=VOCAB_SIZE, tokenizer_fingerprint="00" * 32)
    _, shard = open_shard(path)
    in_memory = TokenDataset.from_documents([[0]], VOCAB_SIZE)
    return dataclasses.replace(in_memory, shards=[shard] * shard_count)


def make_loader(dataset: TokenDataset, rows: int, context_length: int) -> BatchLoader:
    schedule = BatchSchedule(context_length=context_length, rows=rows)
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
    """Median over steps, after one that fills the caches."""
    batch(0)
    durations, started = [], time.perf_counter()
    for step in range(1, 2000):
        begun = time.perf_counter()
        batch(step)
        durations.append(time.perf_counter() - begun)
        if time.perf_counter() - started > MOST_SECONDS:
            break
    return float(np.median(durations)) * 1e3


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "train-00000.bin"
        dataset = make_dataset(path, shard_count=1)
        tokens = np.asarray(dataset.shards[0].tokens)
        print(f"{TOKENS:,} tokens in {DOCUMENT_COUNT:,} documents; numpy {np.__version__}, torch {torch.__version__}")
        print("batch        loader ms   tokens/s   x plain slice   x random rows")
        for rows, context_length in SHAPES:
            loader = milliseconds(make_loader(dataset, rows, context_length).batch)
            plain = milliseconds(lambda step, r=rows, t=context_length: plain_slice(tokens, step, r, t))
            crops = milliseconds(lambda step, r=rows, t=context_length: random_rows(tokens, step, r, t))
            rate = rows * context_length / loader * 1e3
            shape = f"{rows}x{context_length}"
            print(f"{shape:<12} {loader:9.3f} {rate:10.2e} {loader / plain:15.1f} {loader / crops:15.2f}")
        computed = milliseconds(lambda step: permutation(100_000, seed=1, purpose=DOCUMENTS, epoch=step))
        print(f"order of a shard of 100,000 documents: {computed:.1f} ms")
        started = time.perf_counter()
        make_loader(make_dataset(path, shard_count=2000), 480, 1024).batch(10**6)
        print(f"open and seek to step 1,000,000 of 2,000 shards: {time.perf_counter() - started:.3f} s")


if __name__ == "__main__":
    main()
