"""The order of the data, computed from (seed, epoch) and never stored; docs/data-order.md has the picture.

The tokens of all epochs, each epoch in an order of its own, make one endless stream. `StreamOrder` says where the
tokens of any stretch of the stream lie in the shards. Rows of context_length targets are cut from the stream one after
the other; `RowOrder` says which row comes when. Both are one-to-one, so that nothing is dropped and nothing repeated.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# What random numbers are for; part of the generator's key, so that no two uses share a number.
SHARDS, DOCUMENTS, FIRST_TOKEN, ROWS = range(4)

CACHED_DOCUMENTS = 1 << 22  # 16 bytes each: 64 MB
CACHED_SHARDS = 4  # kept whatever their size: a batch at a shard's end also reads the next shard
WINDOW_TOKENS = 1 << 23  # 16 or 32 MB: what is read together lies together, and a small text is shuffled as a whole


def random_keys(count: int, *, seed: int, purpose: int, epoch: int, item: int) -> np.ndarray:
    """`count` random uint64 of the counter-based generator Philox4x64-10 [Salmon 2011].

    Its key is (seed, purpose) and its counter starts at (0, item, epoch, 0), so that every (epoch, item) has numbers
    of its own. The raw output is fixed by the algorithm; numpy's `permutation` may change between versions.
    """
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, item, epoch, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def permutation(count: int, *, seed: int, purpose: int, epoch: int, item: int = 0) -> np.ndarray:
    """The numbers below `count` in random order (int64): the order that sorts `random_keys`."""
    keys = random_keys(count, seed=seed, purpose=purpose, epoch=epoch, item=item)
    return np.argsort(keys, kind="stable")


class Spans(NamedTuple):
    """Stretches of consecutive tokens: `length[i]` tokens from `start[i]` on go to the places from `place[i]` on."""

    start: np.ndarray
    length: np.ndarray
    place: np.ndarray

    def sources(self) -> np.ndarray:
        """Every token's position, one stretch after the other."""
        return counting_from(self.start, self.length)

    def places(self) -> np.ndarray:
        """Every token's place, in the order of `sources`."""
        return counting_from(self.place, self.length)

    def where(self, chosen: np.ndarray) -> "Spans":
        """The stretches that a boolean mask chooses."""
        return Spans(*(column[chosen] for column in self))


def counting_from(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Count up from each start, so that starts [5, 0] and lengths [3, 2] give [5, 6, 7, 0, 1]."""
    begins = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - begins, lengths)


def cut(spans: Spans, bounds: np.ndarray) -> tuple[np.ndarray, Spans]:
    """Cut stretches of a line where it is divided: part j of the line is bounds[j] to bounds[j + 1], its end excluded.

    Returns each piece's part and the pieces, which start relative to their part:
    3 tokens from 8 on, cut by [0, 10, 20], are 2 tokens of part 0 from 8 on and 1 token of part 1 from 0 on.
    """
    first = np.searchsorted(bounds, spans.start, side="right") - 1
    last = np.searchsorted(bounds, spans.start + spans.length - 1, side="right") - 1
    pieces = last - first + 1
    part = counting_from(first, pieces)
    whole = Spans(*(np.repeat(column, pieces) for column in spans))
    start = np.maximum(whole.start, bounds[part])
    end = np.minimum(whole.start + whole.length, bounds[part + 1])
    return part, Spans(start - bounds[part], end - start, whole.place + start - whole.start)


class StreamOrder:
    """Where the tokens of the endless stream lie.

    document_ends: for each shard the end of every document, as `Shard.document_ends`. An epoch is a ring: the shards in
    random order, the documents of each in random order. It is read once around from one of its first context_length
    tokens, a random one, so that an epoch's rows are cut where no other epoch's were, even if all is one document.
    """

    def __init__(self, document_ends: Sequence[np.ndarray], *, seed: int, context_length: int) -> None:
        self._document_ends = [np.asarray(ends) for ends in document_ends]
        self._shard_tokens = np.array([ends[-1] if len(ends) else 0 for ends in document_ends], dtype=np.int64)
        self.token_count = int(self._shard_tokens.sum())
        self._seed = seed
        self._context_length = context_length
        most_documents = max((len(ends) for ends in document_ends), default=0)
        cached_shards = max(CACHED_SHARDS, CACHED_DOCUMENTS // max(most_documents, 1))
        self._ring = functools.lru_cache(maxsize=4)(self._computed_ring)
        self._documents = functools.lru_cache(maxsize=cached_shards)(self._computed_documents)

    def locate(self, starts: np.ndarray, length: int) -> Iterator[tuple[int, Spans]]:
        """Find `length` consecutive stream tokens from each start on, to be placed one stretch after the other.

        Yields a shard and stretches of its tokens, until every place is covered. A start may be -1: the token before
        the first one is the last of epoch 0, which precedes it in that epoch's ring.
        """
        if not len(starts):
            return
        places = np.arange(len(starts)) * length
        spans = Spans(starts, np.full(len(starts), length), places)
        first_epoch = int(starts.min()) // self.token_count
        last_epoch = int(starts.max() + length - 1) // self.token_count
        epochs, spans = cut(spans, np.arange(first_epoch, last_epoch + 2) * self.token_count)
        for epoch in range(first_epoch, last_epoch + 1):
            yield from self._locate_in_epoch(max(epoch, 0), spans.where(epochs == epoch - first_epoch))

    def _locate_in_epoch(self, epoch: int, spans: Spans) -> Iterator[tuple[int, Spans]]:
        shards, bounds, first_token = self._ring(epoch)
        slots, spans = cut(spans._replace(start=spans.start + first_token), bounds)
        for slot in np.unique(slots):
            shard = int(shards[slot % len(shards)])
            yield shard, self._locate_in_shard(epoch, shard, spans.where(slots == slot))

    def _locate_in_shard(self, epoch: int, shard: int, spans: Spans) -> Spans:
        begins, bounds = self._documents(epoch, shard)
        slots, spans = cut(spans, bounds)
        return spans._replace(start=begins[slots] + spans.start)

    def _computed_ring(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The shards' order, the bounds of the shards in two rounds of the ring, and where the epoch starts in it."""
        shards = permutation(len(self._shard_tokens), seed=self._seed, purpose=SHARDS, epoch=epoch)
        bounds = _bounds(np.tile(self._shard_tokens[shards], 2))
        key = random_keys(1, seed=self._seed, purpose=FIRST_TOKEN, epoch=epoch, item=0)[0]
        return shards, bounds, int(key) % min(self._context_length, self.token_count)

    def _computed_documents(self, epoch: int, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents of a shard in their order: where each begins in the shard, and the bounds they then have."""
        ends = self._document_ends[shard]
        lengths = np.diff(ends, prepend=0)
        order = permutation(len(ends), seed=self._seed, purpose=DOCUMENTS, epoch=epoch, item=shard)
        return (ends - lengths)[order], _bounds(lengths[order])


def _bounds(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


class RowOrder:
    """Which row of the stream comes when.

    Row i has the stream's tokens from i * context_length on as targets. It belongs to the epoch that its first target
    belongs to. The rows of an epoch are divided into windows of at most `window_rows` (0: of 8 million tokens) and
    permuted in each, so that the rows of a long document come apart while what is read together lies together.
    """

    def __init__(self, *, token_count: int, context_length: int, seed: int, window_rows: int = 0) -> None:
        self._token_count = token_count
        self._context_length = context_length
        self._seed = seed
        self._window_rows = window_rows or max(1, WINDOW_TOKENS // context_length)
        self._window = functools.lru_cache(maxsize=4)(self._computed_window)

    def first_row(self, epoch: int) -> int:
        """The first row whose first target is in the epoch."""
        return -(-epoch * self._token_count // self._context_length)

    def rows(self, first: int, count: int) -> np.ndarray:
        """The rows (int64) that come at the turns first, first + 1, ..., first + count - 1."""
        turn, end = first, first + count
        found = [np.zeros(0, dtype=np.int64)]
        while turn < end:
            begin, window = self._window(*self._window_of(turn))
            found.append(window[turn - begin : end - begin])
            turn += len(found[-1])
        return np.concatenate(found)

    def _window_of(self, turn: int) -> tuple[int, int]:
        """The epoch of a turn and the window within the epoch; row and turn of one number are in the same window."""
        epoch = turn * self._context_length // self._token_count
        first, row_count, windows = self._windows(epoch)
        return epoch, ((turn - first + 1) * windows - 1) // row_count

    def _windows(self, epoch: int) -> tuple[int, int, int]:
        first = self.first_row(epoch)
        row_count = self.first_row(epoch + 1) - first
        return first, row_count, -(-row_count // self._window_rows)

    def _computed_window(self, epoch: int, window: int) -> tuple[int, np.ndarray]:
        """The first turn of a window, and its rows in order; windows of an epoch differ by at most one row."""
        first, row_count, windows = self._windows(epoch)
        begin = first + row_count * window // windows
        end = first + row_count * (window + 1) // windows
        return begin, begin + permutation(end - begin, seed=self._seed, purpose=ROWS, epoch=epoch, item=window)
