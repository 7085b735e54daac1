"""Batches of training tokens: which tokens a step sees is a pure function of (seed, position in tokens)."""

import mmap
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quillgpt.data.order import RowOrder, StreamOrder
from quillgpt.data.token_dataset import TokenDataset

# A random read maps up to 64 KiB of a file around it, so mapped pages stay below 2048 * 64 KiB = 128 MiB.
READS_KEPT_MAPPED = 2048
TOKENS_AHEAD = 1 << 14  # 64 KiB


@dataclass(frozen=True, kw_only=True)
class BatchSchedule:
    """How many rows a step has over all ranks, and so how far the steps before it came.

    changes: (from step, rows) in the order of steps, for a batch that grows; a row is context_length tokens.
    """

    context_length: int
    rows: int
    changes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        starts = [start for start, _ in self._pieces()]
        if starts != sorted(set(starts)):
            raise ValueError(f"changes = {self.changes}: steps must increase and be above 0")
        if self.context_length < 1 or any(rows < 1 for _, rows in self._pieces()):
            raise ValueError(f"context_length and rows must be at least 1: {self}")

    def _pieces(self) -> tuple[tuple[int, int], ...]:
        return ((0, self.rows), *self.changes)

    def rows_at(self, step: int) -> int:
        """Rows of the step's global batch."""
        return [rows for start, rows in self._pieces() if start <= step][-1]

    def rows_before(self, step: int) -> int:
        """Rows of all steps before this one."""
        starts = [start for start, _ in self._pieces()]
        ends = [*starts[1:], step]
        steps = [max(0, min(end, step) - start) for start, end in zip(starts, ends, strict=True)]
        return sum(count * rows for count, (_, rows) in zip(steps, self._pieces(), strict=True))

    def position(self, step: int) -> int:
        """Tokens of all steps before this one: where in the data the step begins."""
        return self.rows_before(step) * self.context_length


class BatchLoader:
    """Every step's batch, computed when asked for; it has no state but caches.

    Each token of the split is a target exactly once per epoch, and the end of an epoch flows into the next one.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        *,
        context_length: int,
        schedule: BatchSchedule,
        seed: int,
        window_rows: int = 0,
    ) -> None:
        dataset.check_length(context_length + 1)
        if schedule.context_length != context_length:
            raise ValueError(f"context_length = {context_length}, but the schedule's is {schedule.context_length}")
        self._tokens = [shard.tokens for shard in dataset.shards]
        self._context_length = context_length
        self._schedule = schedule
        document_ends = [shard.document_ends for shard in dataset.shards]
        self._stream = StreamOrder(document_ends, seed=seed, context_length=context_length)
        self._rows = RowOrder(
            token_count=self._stream.token_count, context_length=context_length, seed=seed, window_rows=window_rows
        )
        self._reads = 0
        self._mapped: set[int] = set()
        self._ahead_from, self._ahead = 0, np.empty((0, context_length + 1), dtype=np.uint32)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Rows that this rank has of the step's global batch: (inputs, targets), each (B, T) int64.

        The ranks' rows follow each other, and their numbers B differ by at most one. A target is the token after its
        input in the stream.
        """
        if step < 0 or not 0 <= rank < world_size:
            raise ValueError(f"no batch for step {step}, rank {rank} of {world_size}")
        rows = self._schedule.rows_at(step)
        begin, end = rows * rank // world_size, rows * (rank + 1) // world_size
        first = self._schedule.rows_before(step) + begin
        tokens = self._taken_at(first, end - begin, ahead=world_size == 1)
        inputs, targets = (part.astype(np.int64, order="C") for part in (tokens[:, :-1], tokens[:, 1:]))
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def _taken_at(self, first: int, count: int, *, ahead: bool) -> np.ndarray:
        """The tokens (B, T + 1) of the rows that come at `count` turns; `ahead`: with those of the turns after them.

        To find a few short rows takes as long as to find many, and longer than to copy them.
        """
        if not self._ahead_from <= first <= first + count <= self._ahead_from + len(self._ahead):
            most = min(TOKENS_AHEAD, self._stream.token_count) if ahead else 0
            batches = max(1, most // max(1, count * self._context_length))
            found = count * batches  # whole batches, or the last rows would be found twice
            turns = self._rows.rows(first, found)
            self._ahead_from, self._ahead = first, self._read(turns * self._context_length - 1)
        return self._ahead[first - self._ahead_from :][:count]

    def _read(self, starts: np.ndarray) -> np.ndarray:
        """The stream's tokens from each start on, (B, T + 1)."""
        length = self._context_length + 1
        tokens = np.empty(len(starts) * length, dtype=np.uint32)
        for shard, spans in self._stream.locate(starts, length):
            tokens[spans.places()] = np.asarray(self._tokens[shard])[spans.sources()]
            self._mapped.add(shard)
            self._reads += len(spans.start)
        if self._reads > READS_KEPT_MAPPED:
            self._unmap()
        return tokens.reshape(len(starts), length)

    def _unmap(self) -> None:
        """Give back the pages that reads have mapped, or the process would seem to grow to the size of the data.

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
