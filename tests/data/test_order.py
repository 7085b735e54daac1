"""The order of the data is one-to-one, random, the same on every machine, and cheap to compute."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quillgpt.data import order as order_module
from quillgpt.data.order import (
    CACHED_SHARDS,
    DOCUMENTS,
    FIRST_TOKEN,
    SEQUENCES,
    SHARDS,
    SequenceOrder,
    StreamOrder,
    TokenRanges,
    permutation,
    random_keys,
    split_at_bounds,
)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as in the paper [Salmon 2011], on plain integers."""
    mask = 2**64 - 1
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = x0 * 0xD2E7470EE14C6C93, x2 * 0xCA5A826395121157
        x0, x1, x2, x3 = (product1 >> 64) ^ x1 ^ k0, product1 & mask, (product0 >> 64) ^ x3 ^ k1, product0 & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return [x0, x1, x2, x3]


def document_ends(*shards: list[int]) -> list[np.ndarray]:
    return [np.cumsum(np.array(lengths, dtype=np.int64)) for lengths in shards]


def stream_tokens(order: StreamOrder, shards: list[np.ndarray], start: int, count: int) -> np.ndarray:
    """Tokens of the stream, numbered 0, 1, ... through all shards in file order."""
    first_number = np.cumsum([0, *(int(ends[-1]) if len(ends) else 0 for ends in shards)])
    tokens = np.full(count, -1)
    for shard, ranges in order.locate(np.array([start]), count):
        tokens[ranges.destination_indices()] = first_number[shard] + ranges.source_indices()
    return tokens


def slow_epoch(lengths: list[list[int]], *, seed: int, epoch: int, context_length: int) -> list[int]:
    """An epoch's tokens, numbered as by `stream_tokens`, from plain lists."""
    count = sum(map(sum, lengths))
    numbers = iter(range(count))
    documents = [[[next(numbers) for _ in range(length)] for length in shard] for shard in lengths]
    ring = []
    for shard in permutation(len(lengths), seed=seed, purpose=SHARDS, epoch=epoch):
        for document in permutation(len(lengths[shard]), seed=seed, purpose=DOCUMENTS, epoch=epoch, item=int(shard)):
            ring += documents[shard][document]
    key = int(random_keys(1, seed=seed, purpose=FIRST_TOKEN, epoch=epoch, item=0)[0])
    first = key % min(context_length, count)
    return ring[first:] + ring[:first]


def test_random_keys_are_those_of_the_published_algorithm() -> None:
    assert philox([0, 0, 0, 0], [0, 0]) == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    ]  # fmt: skip
    for seed in (0, 1337, 2**63 - 1):
        keys = random_keys(6, seed=seed, purpose=SEQUENCES, epoch=2, item=5)
        # numpy increments the counter before each block of four
        expected = philox([1, 5, 2, 0], [seed, SEQUENCES]) + philox([2, 5, 2, 0], [seed, SEQUENCES])
        assert keys.tolist() == expected[:6], seed


def test_a_permutation_sorts_the_random_keys_and_depends_on_each_argument() -> None:
    base = {"seed": 3, "purpose": DOCUMENTS, "epoch": 1, "item": 4}
    keys = random_keys(1000, **base)
    assert permutation(1000, **base).tolist() == sorted(range(1000), key=lambda i: keys[i])
    variants = [base, base | {"seed": 2}, base | {"purpose": SHARDS}, base | {"epoch": 2}, base | {"item": 2}]
    assert len({tuple(permutation(20, **variant)) for variant in variants}) == len(variants)


def test_ranges_are_split_as_in_the_docstring() -> None:
    part, ranges = split_at_bounds(TokenRanges(np.array([8]), np.array([3]), np.array([100])), np.array([0, 10, 20]))
    assert part.tolist() == [0, 1]
    assert [column.tolist() for column in ranges] == [[8, 0], [2, 1], [100, 102]]


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.data())
def test_a_split_range_has_for_every_token_its_part_and_its_position_there(lengths: list[int], data) -> None:
    bounds = np.cumsum([0, *lengths])
    total = int(bounds[-1])
    given_ranges = []
    if total:
        starts = data.draw(st.lists(st.integers(0, total - 1), max_size=5))
        given_ranges = [(start, data.draw(st.integers(1, total - start))) for start in starts]
    start, length = (np.array([pair[i] for pair in given_ranges], dtype=np.int64) for i in (0, 1))

    part, ranges = split_at_bounds(TokenRanges(start, length, np.cumsum(length) - length), bounds)

    slowly = [(part, i) for part, size in enumerate(lengths) for i in range(size)]
    expected = [slowly[position] for first, count in given_ranges for position in range(first, first + count)]
    assert list(zip(np.repeat(part, ranges.length).tolist(), ranges.source_indices().tolist(), strict=True)) == expected
    assert ranges.destination_indices().tolist() == list(range(len(expected)))


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 30), max_size=8), min_size=1, max_size=5).filter(any),
    st.integers(0, 2**63 - 1),
    st.integers(1, 40),
    st.data(),
)
def test_the_stream_is_the_slow_one_wherever_reading_starts(lengths, seed, context_length, data) -> None:
    """Three epochs, each with every token once."""
    shards = document_ends(*lengths)
    order = StreamOrder(shards, seed=seed, context_length=context_length)
    epochs = [slow_epoch(lengths, seed=seed, epoch=epoch, context_length=context_length) for epoch in range(3)]
    tokens = [token for epoch in epochs for token in epoch]
    start = data.draw(st.integers(0, len(tokens) - 1))
    count = data.draw(st.integers(1, len(tokens) - start))
    assert [sorted(epoch) for epoch in epochs] == [list(range(order.token_count))] * 3
    assert stream_tokens(order, shards, 0, len(tokens)).tolist() == tokens
    assert stream_tokens(order, shards, start, count).tolist() == tokens[start : start + count]


def test_one_document_is_cut_at_another_place_in_every_epoch() -> None:
    shards = document_ends([64 * 10])
    order = StreamOrder(shards, seed=1, context_length=64)
    first_targets = {int(stream_tokens(order, shards, epoch * 640, 1)[0]) for epoch in range(20)}
    assert first_targets <= set(range(64))
    assert len(first_targets) > 12


def test_few_orders_of_documents_are_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "CACHED_DOCUMENTS", 1000)
    shards = document_ends(*[[1] * 1000 for _ in range(CACHED_SHARDS + 2)])
    order = StreamOrder(shards, seed=1, context_length=4)
    for shard in range(len(shards)):
        order._documents(0, shard)
    assert order._documents.cache_info().currsize == CACHED_SHARDS


@settings(deadline=None)
@given(st.integers(11, 600), st.integers(1, 20), st.integers(1, 60), st.integers(0, 2**63 - 1))
def test_sequences_are_permuted_within_windows_and_epochs(token_count, context_length, window, seed) -> None:
    order = SequenceOrder(token_count=token_count, context_length=context_length, seed=seed, block_sequences=window)
    for epoch in range(5):
        first, end = order.first_sequence(epoch), order.first_sequence(epoch + 1)
        found = order.sequences(first, end - first)
        assert sorted(found) == list(range(first, end))
        assert np.abs(found - np.arange(first, end)).max(initial=0) < window
        starts = np.arange(first, end) * context_length
        assert ((epoch * token_count <= starts) & (starts < (epoch + 1) * token_count)).all()
    together = order.sequences(0, 100)
    assert [int(order.sequences(place, 1)[0]) for place in reversed(range(100))] == together[::-1].tolist()


def test_sequences_are_in_random_order_and_in_another_one_in_every_epoch() -> None:
    found = SequenceOrder(token_count=100_000, context_length=10, seed=1).sequences(0, 5000)
    assert abs(np.corrcoef(found, np.arange(5000))[0, 1]) < 0.05
    order = SequenceOrder(token_count=1000, context_length=10, seed=1)
    assert len({tuple(order.sequences(100 * epoch, 100) - 100 * epoch) for epoch in range(5)}) == 5


def test_the_picture_in_the_docs_is_what_is_computed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data-order.md").read_text(encoding="utf-8")
    text = "apples.fig.cherry.plums.kiwi."
    shards = document_ends([7, 4, 7], [6, 5])
    order = StreamOrder(shards, seed=7, context_length=6)
    epochs = ["".join(text[token] for token in stream_tokens(order, shards, epoch * 29, 29)) for epoch in (0, 1)]
    found = SequenceOrder(token_count=29, context_length=6, seed=7, block_sequences=3).sequences(0, 10).tolist()
    assert ":".join(epochs) in page
    assert "0 1 | 4 2 3 | 5 6 | 9 7 8" in page
    assert found == [0, 1, 4, 2, 3, 5, 6, 9, 7, 8]


def test_the_order_is_the_one_of_the_first_release() -> None:
    """A change here means that a resumed run would see other data: it needs a new schema of checkpoints."""
    shards = document_ends([3, 1, 4, 1], [5, 9, 2])
    order = StreamOrder(shards, seed=1337, context_length=4)
    second_epoch = " ".join(map(str, stream_tokens(order, shards, 25, 25)))
    assert second_epoch == "10 11 12 13 14 15 16 17 18 19 20 21 22 4 5 6 7 0 1 2 3 8 23 24 9"
    order = SequenceOrder(token_count=25, context_length=4, seed=1337)
    assert order.sequences(0, 13).tolist() == [4, 5, 6, 0, 3, 2, 1, 8, 9, 11, 7, 10, 12]


def test_the_order_in_several_windows_is_the_one_of_the_first_release() -> None:
    order = SequenceOrder(token_count=121, context_length=4, seed=1337, block_sequences=8)
    found = " ".join(map(str, order.sequences(0, 62)))
    assert found == (
        "4 5 6 0 3 2 1 8 11 13 9 7 10 12 14 18 20 16 21 19 17 22 15 29 25 30 26 23 28 24 27 "
        "32 33 35 37 31 34 36 44 38 43 42 40 39 41 45 49 48 51 52 46 50 47 54 60 58 59 53 55 56 57 64"
    )


def test_a_text_of_a_million_tokens_is_shuffled_completely_and_a_long_one_in_windows_of_8_million() -> None:
    """The first tenth of an epoch comes from all tenths of a short text alike, whatever the context."""
    for context_length in (1, 8, 64, 1024):
        count = 1_000_000 // context_length
        order = SequenceOrder(token_count=1_000_000, context_length=context_length, seed=1)
        tenths = np.bincount(order.sequences(0, count // 10) * 10 // (count + 1), minlength=10) / (count // 10)
        assert np.abs(tenths - 0.1).max() < 0.06, context_length
    for context_length in (64, 1024):
        order = SequenceOrder(token_count=1 << 26, context_length=context_length, seed=1)
        window = (1 << 23) // context_length
        assert sorted(order.sequences(window, window).tolist()) == list(range(window, 2 * window)), context_length
