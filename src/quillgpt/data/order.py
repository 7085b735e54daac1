"""The order of the training tokens, computed from (seed, epoch) and never stored; docs/data-order.md has the picture.

The tokens of all epochs, each epoch in its own order, are one endless stream. `StreamOrder` maps positions in the
stream to positions in the shards. The stream is cut into sequences of context_length targets; `SequenceOrder` says when
each is read. Both are one-to-one, so that every token is a target exactly once per epoch.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# What random numbers are for; part of the generator's key, so that no two uses share a number.
SHARDS, DOCUMENTS, FIRST_TOKEN, SEQUENCES = range(4)

CACHED_DOCUMENTS = 1 << 22  # 16 bytes each: 64 MB
CACHED_SHARDS = 4  # kept whatever their size: a batch at a shard's end also reads the next shard
SHUFFLE_BLOCK_TOKENS = 1 << 23  # 16 or 32 MB: reads stay close together on the disk, and a small text is one block


def random_keys(count: int, *, seed: int, purpose: int, epoch: int, item: int) -> np.ndarray:
    """Return `count` random uint64 of the counter-based generator Philox4x64-10 [Salmon 2011].

    Its key is (seed, purpose) and its counter starts at (0, item, epoch, 0), so that every (epoch, item) has its own
    numbers. The raw output is fixed by the algorithm; numpy's `permutation` may change between versions.
    """
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, item, epoch, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def permutation(count: int, *, seed: int, purpose: int, epoch: int, item: int = 0) -> np.ndarray:
    """Return the numbers below `count` in random order (int64): the order that sorts `random_keys`."""
    keys = random_keys(count, seed=seed, purpose=purpose, epoch=epoch, item=item)
    return np.argsort(keys, kind="stable")


class TokenRanges(NamedTuple):
    """Tokens to copy: `length[i]` consecutive ones from `start[i]` on go to the indices from `destination[i]` on."""

    start: np.ndarray
    length: np.ndarray
    destination: np.ndarray

    def source_indices(self) -> np.ndarray:
        """Index of every token, one range after the other."""
        return concatenated_ranges(self.start, self.length)

    def destination_indices(self) -> np.ndarray:
        """Destination of every token, in the order of `source_indices`."""
        return concatenated_ranges(self.destination, self.length)

    def select(self, mask: np.ndarray) -> "TokenRanges":
        """Return the ranges for which a boolean mask is true."""
        return TokenRanges(*(column[mask] for column in self))


def concatenated_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Count up from each start: starts [5, 0] and lengths [3, 2] give [5, 6, 7, 0, 1]."""
    begins = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - begins, lengths)


def split_at_bounds(ranges: TokenRanges, bounds: np.ndarray) -> tuple[np.ndarray, TokenRanges]:
    """Split ranges at bounds; part j is bounds[j] to bounds[j + 1], its end excluded.

    Returns the part of each of the shorter ranges, and these ranges, which start relative to their part:
    3 tokens from 8 on, split at [0, 10, 20], are 2 tokens of part 0 from 8 on and 1 token of part 1 from 0 on.
    """
    first = np.searchsorted(bounds, ranges.start, side="right") - 1
    last = np.searchsorted(bounds, ranges.start + ranges.length - 1, side="right") - 1
    counts = last - first + 1
    part = concatenated_ranges(first, counts)
    unsplit = TokenRanges(*(np.repeat(column, counts) for column in ranges))
    start = np.maximum(unsplit.start, bounds[part])
    end = np.minimum(unsplit.start + unsplit.length, bounds[part + 1])
    return part, TokenRanges(start - bounds[part], end - start, unsplit.destination + start - unsplit.start)


class StreamOrder:
    """Maps positions in the endless stream of tokens to positions in the shards.

    document_ends: for each shard the end of every document, as `Shard.document_ends`. An epoch is a ring: the shards in
    random order, the documents of each in random order. Each epoch starts at a random offset below context_length and
    wraps around, so that sequence boundaries differ between epochs, even if an epoch is one document.
    """

    def __init__(self, document_ends: Sequence[np.ndarray], *, seed: int, context_length: int) -> None:
        self._document_ends = [np.asarray(ends) for ends in document_ends]
        self._shard_tokens = np.array([ends[-1] if len(ends) else 0 for ends in document_ends], dtype=np.int64)
        self.token_count = int(self._shard_tokens.sum())
        self._seed = seed
        self._context_length = context_length
        most_documents = max((len(ends) for ends in document_ends), default=0)
        cached_shards = max(CACHED_SHARDS, CACHED_DOCUMENTS // max(most_documents, 1))
        self._ring = functools.lru_cache(maxsize=4)(self._compute_ring)
        self._documents = functools.lru_cache(maxsize=cached_shards)(self._compute_documents)

    def locate(self, starts: np.ndarray, length: int) -> Iterator[tuple[int, TokenRanges]]:
        """Find `length` consecutive tokens of the stream from each start on; their destinations follow each other.

        Yields a shard and ranges of its tokens, until every destination is covered. A start may be -1: sequence 0
        needs an input before token 0, which is the last token of epoch 0.
        """
        if not len(starts):
            return
        ranges = TokenRanges(starts, np.full(len(starts), length), np.arange(len(starts)) * length)
        first_epoch = int(starts.min()) // self.token_count
        last_epoch = int(starts.max() + length - 1) // self.token_count
        epochs, ranges = split_at_bounds(ranges, np.arange(first_epoch, last_epoch + 2) * self.token_count)
        for epoch in range(first_epoch, last_epoch + 1):
            yield from self._locate_in_epoch(max(epoch, 0), ranges.select(epochs == epoch - first_epoch))

    def _locate_in_epoch(self, epoch: int, ranges: TokenRanges) -> Iterator[tuple[int, TokenRanges]]:
        shards, bounds, first_token = self._ring(epoch)
        slots, ranges = split_at_bounds(ranges._replace(start=ranges.start + first_token), bounds)
        for slot in np.unique(slots):
            shard = int(shards[slot % len(shards)])
            yield shard, self._locate_in_shard(epoch, shard, ranges.select(slots == slot))

    def _locate_in_shard(self, epoch: int, shard: int, ranges: TokenRanges) -> TokenRanges:
        begins, bounds = self._documents(epoch, shard)
        slots, ranges = split_at_bounds(ranges, bounds)
        return ranges._replace(start=begins[slots] + ranges.start)

    def _compute_ring(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the order of the shards, their bounds in two rounds of the ring, and the epoch's start in the ring."""
        shards = permutation(len(self._shard_tokens), seed=self._seed, purpose=SHARDS, epoch=epoch)
        bounds = _bounds(np.tile(self._shard_tokens[shards], 2))
        key = random_keys(1, seed=self._seed, purpose=FIRST_TOKEN, epoch=epoch, item=0)[0]
        return shards, bounds, int(key) % min(self._context_length, self.token_count)

    def _compute_documents(self, epoch: int, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where each document of a shard begins, in random order, and the bounds they have in that order."""
        ends = self._document_ends[shard]
        lengths = np.diff(ends, prepend=0)
        order = permutation(len(ends), seed=self._seed, purpose=DOCUMENTS, epoch=epoch, item=shard)
        return (ends - lengths)[order], _bounds(lengths[order])


def _bounds(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


class SequenceOrder:
    """The order in which the sequences of the stream are read.

    Sequence i has the stream's tokens from i * context_length on as targets; it belongs to the epoch of its first
    target. The sequences of an epoch are divided into shuffle blocks of at most `block_sequences` (0: of 8 million
    tokens) and permuted in each, so that neighbours in a long document are read apart while reads stay close on disk.
    """

    def __init__(self, *, token_count: int, context_length: int, seed: int, block_sequences: int = 0) -> None:
        self._token_count = token_count
        self._context_length = context_length
        self._seed = seed
        self._block_sequences = block_sequences or max(1, SHUFFLE_BLOCK_TOKENS // context_length)
        self._block = functools.lru_cache(maxsize=4)(self._compute_block)

    def first_sequence(self, epoch: int) -> int:
        """Return the first sequence of an epoch."""
        return -(-epoch * self._token_count // self._context_length)

    def sequences(self, first: int, count: int) -> np.ndarray:
        """Return the sequences (int64) that are read as number first, first + 1, ..., first + count - 1."""
        index, end = first, first + count
        found = [np.zeros(0, dtype=np.int64)]
        while index < end:
            begin, block = self._block(*self._block_at(index))
            found.append(block[index - begin : end - begin])
            index += len(found[-1])
        return np.concatenate(found)

    def _block_at(self, index: int) -> tuple[int, int]:
        """Return the epoch of an index in the order and its block there; sequence i and index i share a block."""
        epoch = index * self._context_length // self._token_count
        first, sequence_count, blocks = self._blocks(epoch)
        return epoch, ((index - first + 1) * blocks - 1) // sequence_count

    def _blocks(self, epoch: int) -> tuple[int, int, int]:
        """Return an epoch's first sequence, and its numbers of sequences and of blocks."""
        first = self.first_sequence(epoch)
        sequence_count = self.first_sequence(epoch + 1) - first
        return first, sequence_count, -(-sequence_count // self._block_sequences)

    def _compute_block(self, epoch: int, block: int) -> tuple[int, np.ndarray]:
        """Return the first index of a block, and its sequences in order; blocks differ by at most one sequence."""
        first, sequence_count, blocks = self._blocks(epoch)
        begin = first + sequence_count * block // blocks
        end = first + sequence_count * (block + 1) // blocks
        return begin, begin + permutation(end - begin, seed=self._seed, purpose=SEQUENCES, epoch=epoch, item=block)
