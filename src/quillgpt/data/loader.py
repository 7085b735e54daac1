"""Batches of tokens as tensors: shuffled ones for training, fixed windows for validation.

Which tokens a training step sees is a pure function of the seed and the number of tokens before it (`order.py`).
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quillgpt.data.dataset import TokenDataset
from quillgpt.data.order import SequenceOrder, StreamOrder
from quillgpt.model.loss import IGNORED_TARGET

# A random read maps up to 64 KiB of a file around it, so mapped pages stay below 2048 * 64 KiB = 128 MiB.
MAX_MAPPED_READS = 2048
PREFETCH_TOKENS = 1 << 14  # 64 KiB


@dataclass(frozen=True, kw_only=True)
class BatchSchedule:
    """The global batch size of every step, in sequences, and so where in the data the step begins.

    changes: (first step, batch size) in the order of steps, for a batch that grows.
    """

    context_length: int
    global_batch_size: int
    changes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        starts = [start for start, _ in self._stages()]
        if starts != sorted(set(starts)):
            raise ValueError(f"invalid changes: {self.changes} (steps must increase and be > 0)")
        if self.context_length < 1 or any(global_batch_size < 1 for _, global_batch_size in self._stages()):
            raise ValueError(f"invalid {self} (context_length and batch sizes must be >= 1)")

    def _stages(self) -> tuple[tuple[int, int], ...]:
        return ((0, self.global_batch_size), *self.changes)

    def global_batch_size_at(self, step: int) -> int:
        """Return the number of sequences in the step's global batch."""
        return [global_batch_size for start, global_batch_size in self._stages() if start <= step][-1]

    def sequences_before(self, step: int) -> int:
        """Return the number of sequences of all earlier steps."""
        ends = [*(start for start, _ in self.changes), step]
        stages = zip(self._stages(), ends, strict=True)
        return sum(max(0, min(end, step) - start) * global_batch_size for (start, global_batch_size), end in stages)

    def first_token(self, step: int) -> int:
        """Return the number of tokens of all earlier steps: where in the data the step begins."""
        return self.sequences_before(step) * self.context_length


class BatchLoader:
    """Every step's batch, computed on demand; it has no state but caches.

    Each token of the split is a target exactly once per epoch, and a batch may contain the end of an epoch and the
    beginning of the next one.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        *,
        context_length: int,
        schedule: BatchSchedule,
        seed: int,
        block_sequences: int = 0,
    ) -> None:
        dataset.check_length(context_length + 1)
        if schedule.context_length != context_length:
            raise ValueError(f"invalid context_length: {context_length} (the schedule has {schedule.context_length})")
        self._tokens = [shard.tokens for shard in dataset.shards]
        self._context_length = context_length
        self._schedule = schedule
        document_ends = [shard.document_ends for shard in dataset.shards]
        self._stream = StreamOrder(document_ends, seed=seed, context_length=context_length)
        self._order = SequenceOrder(
            token_count=self._stream.token_count,
            context_length=context_length,
            seed=seed,
            block_sequences=block_sequences,
        )
        self._reads = 0
        self._mapped: set[int] = set()
        self._prefetched_from, self._prefetched = 0, np.empty((0, context_length + 1), dtype=np.uint32)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Return this rank's sequences of the step's global batch: (inputs, targets), each (B, T) int64.

        The ranks' sequences follow each other, and B differs by at most one between ranks. A target is the token after
        its input in the stream.
        """
        if step < 0 or not 0 <= rank < world_size:
            raise ValueError(f"invalid batch: step {step}, rank {rank} of {world_size}")
        batch_size = self._schedule.global_batch_size_at(step)
        begin, end = batch_size * rank // world_size, batch_size * (rank + 1) // world_size
        first = self._schedule.sequences_before(step) + begin
        tokens = self._sequences_at(first, end - begin, prefetch=world_size == 1)
        inputs, targets = (part.astype(np.int64, order="C") for part in (tokens[:, :-1], tokens[:, 1:]))
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def _sequences_at(self, first: int, count: int, *, prefetch: bool) -> np.ndarray:
        """Return the tokens (B, T + 1) of `count` sequences from index `first` of the order on.

        prefetch: also read the following batches. Locating a few short sequences takes as long as locating many, and
        longer than copying them.
        """
        if not self._prefetched_from <= first <= first + count <= self._prefetched_from + len(self._prefetched):
            most_tokens = min(PREFETCH_TOKENS, self._stream.token_count) if prefetch else 0
            batches = max(1, most_tokens // max(1, count * self._context_length))
            sequences = self._order.sequences(first, count * batches)  # complete batches, so none is read twice
            self._prefetched_from, self._prefetched = first, self._read(sequences * self._context_length - 1)
        return self._prefetched[first - self._prefetched_from :][:count]

    def _read(self, starts: np.ndarray) -> np.ndarray:
        """Return the stream's tokens from each start on, (B, T + 1)."""
        length = self._context_length + 1
        tokens = np.empty(len(starts) * length, dtype=np.uint32)
        for shard, ranges in self._stream.locate(starts, length):
            tokens[ranges.destination_indices()] = np.asarray(self._tokens[shard])[ranges.source_indices()]
            self._mapped.add(shard)
            self._reads += len(ranges.start)
        if self._reads > MAX_MAPPED_READS:
            self._release_pages()
        return tokens.reshape(len(starts), length)

    def _release_pages(self) -> None:
        """Release the pages that reads have mapped, or the process would seem to grow to the size of the data.

        The pages stay in the system's file cache.
        """
        for shard in self._mapped:
            memory = self._tokens[shard]
            while isinstance(memory, np.ndarray):
                memory = memory.base
            if isinstance(memory, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                memory.madvise(mmap.MADV_DONTNEED)
        self._mapped.clear()
        self._reads = 0


@dataclass(frozen=True)
class ValidationWindows:
    """Consecutive windows without overlap, in file order, until `max_tokens` targets are covered.

    Every evaluation scores the same tokens in the same contexts. Window i has the inputs from token i * context_length
    on; its targets are the tokens one later. The last window may be shorter: its missing inputs are 0, its missing
    targets IGNORED_TARGET. The first token has no input and is not a target; every other one up to the limit is one
    exactly once. With `before`, for example an end of text, the split starts with these tokens, and all of its own
    tokens are targets.
    """

    dataset: TokenDataset
    context_length: int
    max_tokens: int
    before: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.dataset.check_length(2)
        if self.context_length < 1 or self.max_tokens < 1:
            sizes = f"context_length {self.context_length}, max_tokens {self.max_tokens}"
            raise ValueError(f"invalid windows: {sizes} (each must be >= 1)")

    @property
    def target_count(self) -> int:
        """Number of targets in all windows, without padding."""
        return min(len(self.before) + self.dataset.token_count - 1, self.max_tokens)

    @property
    def window_count(self) -> int:
        """Number of windows, including a shorter last one."""
        return -(-self.target_count // self.context_length)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's windows in order, `batch_size` at a time: (inputs, targets), each (B, T) int64.

        The ranks' windows follow each other; some ranks have none if there are fewer windows than ranks.
        """
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"invalid batches: {batch_size} windows each, rank {rank} of {world_size}")
        begin, end = (self.window_count * part // world_size for part in (rank, rank + 1))
        for first in range(begin, end, batch_size):
            yield self._windows(first, min(first + batch_size, end))

    def _windows(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        start = first * self.context_length
        stop = min(end * self.context_length, self.target_count)
        offset = len(self.before)
        own = self.dataset.tokens(max(start - offset, 0), stop + 1 - offset)
        tokens = torch.from_numpy(np.concatenate([np.array(self.before[start:], dtype=np.int64), own]))
        shape = (end - first, self.context_length)
        inputs, targets = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED_TARGET, dtype=torch.int64)
        inputs.view(-1)[: stop - start] = tokens[:-1]
        targets.view(-1)[: stop - start] = tokens[1:]
        return inputs, targets
