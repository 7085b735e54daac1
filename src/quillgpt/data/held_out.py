"""Fixed windows of held-out tokens, so that every evaluation scores the same tokens in the same contexts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quillgpt.data.token_dataset import TokenDataset

# What `cross_entropy` ignores as a target; the padding of the last window.
IGNORED_TARGET = -100


@dataclass(frozen=True)
class HeldOutWindows:
    """Windows that follow each other without overlap, in file order, until `max_tokens` targets are covered.

    Window i has the inputs from token i * context_length on, and as targets the tokens one later. The last window may
    be shorter: its missing inputs are 0 and its missing targets IGNORED_TARGET. The first token has nothing before it
    and is no target; every other one up to the limit is a target exactly once. With `before`, as an end of text, the
    split begins with these tokens, so that every token of its own is a target.
    """

    dataset: TokenDataset
    context_length: int
    max_tokens: int
    before: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.dataset.check_length(2)
        if self.context_length < 1 or self.max_tokens < 1:
            raise ValueError(f"context_length = {self.context_length}, max_tokens = {self.max_tokens}: at least 1 each")

    @property
    def target_count(self) -> int:
        """Number of targets in all windows, padding not counted."""
        return min(len(self.before) + self.dataset.token_count - 1, self.max_tokens)

    @property
    def window_count(self) -> int:
        """Number of windows, the shorter one at the end included."""
        return -(-self.target_count // self.context_length)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows of this rank in order, `batch_size` at a time: (inputs, targets), each (B, T) int64.

        The ranks' windows follow each other; a rank has none if there are fewer windows than ranks.
        """
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"no held-out batches of {batch_size} windows for rank {rank} of {world_size}")
        begin, end = (self.window_count * part // world_size for part in (rank, rank + 1))
        for first in range(begin, end, batch_size):
            yield self._windows(first, min(first + batch_size, end))

    def _windows(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        start = first * self.context_length
        stop = min(end * self.context_length, self.target_count)
        skipped = len(self.before)
        own = _tokens_between(self.dataset, max(start - skipped, 0), stop + 1 - skipped)
        tokens = torch.from_numpy(np.concatenate([np.array(self.before[start:], dtype=np.int64), own]))
        shape = (end - first, self.context_length)
        inputs, targets = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED_TARGET, dtype=torch.int64)
        inputs.view(-1)[: stop - start] = tokens[:-1]
        targets.view(-1)[: stop - start] = tokens[1:]
        return inputs, targets


def _tokens_between(dataset: TokenDataset, start: int, stop: int) -> np.ndarray:
    """The split's tokens from `start` to `stop` (excluded) in file order, as int64."""
    found, shard_start = [], 0
    for shard in dataset.shards:
        found.append(shard.tokens[max(start - shard_start, 0) : max(stop - shard_start, 0)])
        shard_start += len(shard.tokens)
    return np.concatenate(found).astype(np.int64)
