"""The order of the data is one-to-one, random, the same on every machine, and cheap to compute."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillgpt.data import order as order_module
from quillgpt.data.order import (
    CACHED_SHARDS,
    DOCUMENTS,
    FIRST_TOKEN,
    ROWS,
    SHARDS,
    RowOrder,
    Spans,
    StreamOrder,
    cut,
    permutation,
    random_keys,
)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 written down from the paper [Salmon 2011], on plain integers."""
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
    for shard, spans in order.locate(np.array([start]), count):
        tokens[spans.places()] = first_number[shard] + spans.sources()
    return tokens


def slow_epoch(lengths: list[list[int]], *, seed: int, epoch: int, context_length: int) -> list[int]:
    """An epoch's tokens, numbered as by `stream_tokens`, put together from lists."""
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


shards_of_lengths = st.lists(st.lists(st.integers(1, 30), max_size=8), min_size=1, max_size=5).filter(
    lambda shards: any(shards)
)


def test_reference_philox_gives_the_published_answer_for_zeros():
    answer = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox([0, 0, 0, 0], [0, 0]) == answer


@pytest.mark.parametrize("seed", [0, 1337, 2**63 - 1])
def test_random_keys_are_the_algorithms_whatever_the_version_of_numpy(seed):
    keys = random_keys(6, seed=seed, purpose=ROWS, epoch=2, item=5)
    # numpy counts up before it draws
    expected = philox([1, 5, 2, 0], [seed, ROWS]) + philox([2, 5, 2, 0], [seed, ROWS])
    assert keys.tolist() == expected[:6]


def test_permutation_sorts_the_random_keys():
    keys = random_keys(1000, seed=3, purpose=DOCUMENTS, epoch=1, item=4)
    order = permutation(1000, seed=3, purpose=DOCUMENTS, epoch=1, item=4)
    assert order.tolist() == sorted(range(1000), key=lambda i: keys[i])


def test_seed_purpose_epoch_and_item_each_change_the_permutation():
    base = {"seed": 1, "purpose": DOCUMENTS, "epoch": 1, "item": 1}
    variants = [base, base | {"seed": 2}, base | {"purpose": SHARDS}, base | {"epoch": 2}, base | {"item": 2}]
    assert len({tuple(permutation(20, **variant)) for variant in variants}) == len(variants)


def test_cut_example_of_the_docstring():
    part, pieces = cut(Spans(np.array([8]), np.array([3]), np.array([100])), np.array([0, 10, 20]))
    assert part.tolist() == [0, 1]
    assert [column.tolist() for column in pieces] == [[8, 0], [2, 1], [100, 102]]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.data())
def test_cut_finds_for_every_token_its_part_and_its_position_there(lengths, data):
    bounds = np.cumsum([0, *lengths])
    total = int(bounds[-1])
    stretches = []
    if total:
        starts = data.draw(st.lists(st.integers(0, total - 1), max_size=5))
        stretches = [(start, data.draw(st.integers(1, total - start))) for start in starts]
    start, length = (np.array([stretch[i] for stretch in stretches], dtype=np.int64) for i in (0, 1))

    part, pieces = cut(Spans(start, length, np.cumsum(length) - length), bounds)

    slowly = [(part, i) for part, size in enumerate(lengths) for i in range(size)]
    expected = [slowly[position] for first, count in stretches for position in range(first, first + count)]
    assert list(zip(np.repeat(part, pieces.length).tolist(), pieces.sources().tolist(), strict=True)) == expected
    assert pieces.places().tolist() == list(range(len(expected)))


@given(shards_of_lengths, st.integers(0, 2**63 - 1), st.integers(1, 40))
def test_every_epoch_of_the_stream_has_every_token_once(lengths, seed, context_length):
    shards = document_ends(*lengths)
    order = StreamOrder(shards, seed=seed, context_length=context_length)
    tokens = stream_tokens(order, shards, 0, 3 * order.token_count)
    everything = list(range(order.token_count))
    assert [sorted(epoch) for epoch in np.split(tokens, 3)] == [everything] * 3


@given(shards_of_lengths, st.integers(0, 2**63 - 1), st.integers(1, 40))
def test_stream_is_the_one_put_together_slowly(lengths, seed, context_length):
    shards = document_ends(*lengths)
    order = StreamOrder(shards, seed=seed, context_length=context_length)
    tokens = stream_tokens(order, shards, 0, 2 * order.token_count)
    epochs = [slow_epoch(lengths, seed=seed, epoch=epoch, context_length=context_length) for epoch in range(2)]
    assert tokens.tolist() == epochs[0] + epochs[1]


@given(shards_of_lengths, st.integers(0, 2**63 - 1), st.data())
def test_a_stretch_of_the_stream_does_not_depend_on_where_reading_starts(lengths, seed, data):
    shards = document_ends(*lengths)
    order = StreamOrder(shards, seed=seed, context_length=8)
    tokens = stream_tokens(order, shards, 0, 3 * order.token_count)
    start = data.draw(st.integers(0, len(tokens) - 1))
    count = data.draw(st.integers(1, len(tokens) - start))
    assert stream_tokens(order, shards, start, count).tolist() == tokens[start : start + count].tolist()


def test_documents_stay_whole_and_change_their_order():
    shards = document_ends([50] * 40, [50] * 60)
    order = StreamOrder(shards, seed=1, context_length=16)
    epochs = np.split(stream_tokens(order, shards, 0, 4 * 5000), 4)
    for epoch in epochs:
        begins_document = np.flatnonzero(np.diff(epoch) != 1) + 1
        assert len(begins_document) <= 101
        assert set(epoch[begins_document] % 50) <= {0}
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_shards_change_their_order_and_stay_together():
    shards = document_ends(*[[10] * 10 for _ in range(20)])
    order = StreamOrder(shards, seed=1, context_length=5)
    shard_of_token = stream_tokens(order, shards, 0, 2 * 2000) // 100
    sequences = [list(dict.fromkeys(epoch)) for epoch in np.split(shard_of_token, 2)]
    assert sequences[0] != sequences[1]
    for epoch in np.split(shard_of_token, 2):
        assert np.count_nonzero(np.diff(epoch)) <= 20  # the shard that the epoch begins in also ends it


def test_token_before_the_first_precedes_it_in_the_ring_of_epoch_0():
    shards = document_ends([3, 4], [5])
    order = StreamOrder(shards, seed=1, context_length=4)
    before_first, *epoch = stream_tokens(order, shards, -1, 13)
    assert before_first == epoch[-1]


def test_one_document_is_cut_at_another_place_in_every_epoch():
    shards = document_ends([64 * 10])
    order = StreamOrder(shards, seed=1, context_length=64)
    first_targets = {int(stream_tokens(order, shards, epoch * 640, 1)[0]) for epoch in range(20)}
    assert first_targets <= set(range(64))
    assert len(first_targets) > 12


def test_few_orders_of_documents_are_kept_in_memory(monkeypatch):
    monkeypatch.setattr(order_module, "CACHED_DOCUMENTS", 1000)
    shards = document_ends(*[[1] * 1000 for _ in range(CACHED_SHARDS + 2)])
    order = StreamOrder(shards, seed=1, context_length=4)
    for shard in range(len(shards)):
        order._documents(0, shard)
    assert order._documents.cache_info().currsize == CACHED_SHARDS


@pytest.mark.parametrize(
    ("token_count", "context_length", "window_rows"),
    [(1000, 10, 8192), (1003, 10, 8192), (1003, 10, 7), (1003, 10, 1), (11, 10, 4), (1007, 19, 53)],
)
class TestRowOrder:
    @pytest.fixture
    def order(self, token_count, context_length, window_rows):
        return RowOrder(token_count=token_count, context_length=context_length, seed=1, window_rows=window_rows)

    def test_rows_of_each_epoch_all_come_before_those_of_the_next(self, order, token_count, context_length):
        for epoch in range(12):
            first, end = order.first_row(epoch), order.first_row(epoch + 1)
            starts = np.sort(order.rows(first, end - first)) * context_length
            assert starts.tolist() == list(range(first * context_length, end * context_length, context_length))
            assert epoch * token_count <= starts[0] <= starts[-1] < (epoch + 1) * token_count

    def test_a_row_comes_less_than_a_window_from_its_place(self, order, window_rows):
        turns = np.arange(500)
        assert np.abs(order.rows(0, 500) - turns).max() < window_rows

    def test_rows_do_not_depend_on_how_they_are_asked_for(self, order):
        together = order.rows(0, 300)
        assert [int(order.rows(turn, 1)[0]) for turn in reversed(range(300))] == together[::-1].tolist()


def test_rows_of_a_window_are_in_random_order():
    rows = RowOrder(token_count=100_000, context_length=10, seed=1).rows(0, 5000)
    assert abs(np.corrcoef(rows, np.arange(5000))[0, 1]) < 0.05


def test_rows_come_in_another_order_in_every_epoch():
    order = RowOrder(token_count=1000, context_length=10, seed=1)
    assert len({tuple(order.rows(100 * epoch, 100) - 100 * epoch) for epoch in range(5)}) == 5


def test_picture_in_the_docs_is_what_is_computed():
    page = (Path(__file__).parents[2] / "docs" / "data-order.md").read_text(encoding="utf-8")
    text = "apples.fig.cherry.plums.kiwi."
    shards = document_ends([7, 4, 7], [6, 5])
    order = StreamOrder(shards, seed=7, context_length=6)
    epochs = ["".join(text[token] for token in stream_tokens(order, shards, epoch * 29, 29)) for epoch in (0, 1)]
    rows = RowOrder(token_count=29, context_length=6, seed=7, window_rows=3).rows(0, 10).tolist()
    assert ":".join(epochs) in page
    assert "0 1 | 4 2 3 | 5 6 | 9 7 8" in page
    assert rows == [0, 1, 4, 2, 3, 5, 6, 9, 7, 8]


def test_order_is_the_one_of_the_first_release():
    """A change here means that a resumed run would see other data: it needs a new schema of checkpoints."""
    shards = document_ends([3, 1, 4, 1], [5, 9, 2])
    order = StreamOrder(shards, seed=1337, context_length=4)
    rows = RowOrder(token_count=25, context_length=4, seed=1337)
    second_epoch = " ".join(map(str, stream_tokens(order, shards, 25, 25)))
    assert second_epoch == "10 11 12 13 14 15 16 17 18 19 20 21 22 4 5 6 7 0 1 2 3 8 23 24 9"
    assert rows.rows(0, 13).tolist() == [4, 5, 6, 0, 3, 2, 1, 8, 9, 11, 7, 10, 12]


@pytest.mark.parametrize("context_length", [1, 8, 64, 1024])
def test_a_text_of_a_million_tokens_is_shuffled_as_a_whole(context_length: int) -> None:
    """The first tenth of an epoch comes from all tenths of the text alike, whatever the context."""
    rows_in_all = 1_000_000 // context_length
    first = RowOrder(token_count=1_000_000, context_length=context_length, seed=1).rows(0, rows_in_all // 10)
    tenths = np.bincount(first * 10 // (rows_in_all + 1), minlength=10) / len(first)
    assert np.abs(tenths - 0.1).max() < 0.06


def test_of_a_long_text_a_window_is_eight_million_tokens() -> None:
    for context_length in (64, 1024):
        order = RowOrder(token_count=1 << 26, context_length=context_length, seed=1)
        window = (1 << 23) // context_length
        assert sorted(order.rows(window, window).tolist()) == list(range(window, 2 * window))
