"""Every token is a target exactly once per epoch, and a batch depends on nothing but the seed and the position."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quillgpt.data import loader as loader_module
from quillgpt.data.loader import BatchLoader, BatchSchedule
from quillgpt.data.shard import Shard
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import DataError

# lengths of documents, and documents per shard (0: one shard)
CORPORA = {
    "one document": ([1003], 0),
    "one document that whole rows fill": ([800], 0),
    "short documents": ([1, 3, 2, 9, 4] * 50, 0),
    "shards": ([7, 30, 1, 200, 55] * 9, 4),
    "one document per shard": ([101, 99, 250], 1),
    "rows longer than documents": ([1] * 40, 7),
    "barely one row": ([11, 6], 0),
}


def numbered_dataset(lengths: list[int], documents_per_shard: int = 0) -> TokenDataset:
    """A data set whose tokens are 0, 1, 2, ...: a token tells where it lies."""
    ends = np.cumsum(lengths)
    documents = [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return TokenDataset.from_documents(documents, vocab_size=int(ends[-1]), documents_per_shard=documents_per_shard)


def make_loader(
    dataset: TokenDataset, *, rows: int = 5, changes=(), seed: int = 1, context_length: int = 16, **settings
):
    schedule = BatchSchedule(context_length=context_length, rows=rows, changes=changes)
    return BatchLoader(dataset, context_length=context_length, schedule=schedule, seed=seed, **settings)


def global_batch(loader: BatchLoader, step: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [loader.batch(step, rank, world_size) for rank in range(world_size)]
    return torch.cat([inputs for inputs, _ in parts]), torch.cat([targets for _, targets in parts])


class TestBatchSchedule:
    schedule = BatchSchedule(context_length=10, rows=3, changes=((4, 5), (5, 2), (9, 8)))

    def test_a_batch_of_one_size_is_the_default(self):
        schedule = BatchSchedule(context_length=1024, rows=480)
        assert (schedule.rows_at(10**6), schedule.position(10**6)) == (480, 480 * 1024 * 10**6)

    def test_rows_change_at_the_given_steps(self):
        assert [self.schedule.rows_at(step) for step in range(11)] == [3, 3, 3, 3, 5, 2, 2, 2, 2, 8, 8]

    def test_position_is_the_sum_of_the_earlier_batches(self):
        sums = [10 * sum(self.schedule.rows_at(earlier) for earlier in range(step)) for step in range(15)]
        assert [self.schedule.position(step) for step in range(15)] == sums

    @pytest.mark.parametrize("changes", [((0, 5),), ((4, 5), (4, 6)), ((4, 5), (3, 6)), ((4, 0),)])
    def test_impossible_changes_are_refused(self, changes):
        with pytest.raises(ValueError, match=r"at least 1|must increase"):
            BatchSchedule(context_length=10, rows=3, changes=changes)


@pytest.mark.parametrize("window_rows", [8192, 3])
@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize("corpus", CORPORA)
def test_every_token_is_a_target_exactly_once_per_epoch(corpus, world_size, window_rows):
    dataset = numbered_dataset(*CORPORA[corpus])
    loader = make_loader(dataset, changes=((2, 8), (4, 13)), window_rows=window_rows)
    epochs, token_count = 3, dataset.token_count
    row_count = -(-epochs * token_count // 16)  # the last of them also has the first tokens of the next epoch

    batches, step = [], 0
    while sum(len(batch) for batch in batches) < row_count:
        batches.append(global_batch(loader, step, world_size)[1])
        step += 1

    counts = torch.bincount(torch.cat(batches)[:row_count].flatten(), minlength=token_count)
    next_epoch = row_count * 16 - epochs * token_count
    assert len(counts) == token_count
    assert counts.sum() == row_count * 16
    assert (counts == epochs + 1).sum() == next_epoch < 16
    assert (counts == epochs).sum() == token_count - next_epoch


@pytest.mark.parametrize("world_size", [2, 3, 8, 20])
def test_ranks_in_order_have_the_rows_of_the_global_batch(world_size):
    loader = make_loader(numbered_dataset(*CORPORA["shards"]), rows=13)
    for step in range(4):
        for parts, whole in zip(global_batch(loader, step, world_size), loader.batch(step), strict=True):
            torch.testing.assert_close(parts, whole, rtol=0, atol=0)


@pytest.mark.parametrize("world_size", [2, 3, 8, 20])
def test_ranks_differ_by_at_most_one_row(world_size):
    loader = make_loader(numbered_dataset(*CORPORA["shards"]), rows=13)
    sizes = [len(loader.batch(0, rank, world_size)[0]) for rank in range(world_size)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_target_is_the_token_after_its_input(corpus):
    inputs, targets = make_loader(numbered_dataset(*CORPORA[corpus]), rows=40).batch(3)
    assert inputs.shape == targets.shape == (40, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_every_first_target_follows_its_input_in_the_text_even_the_very_first():
    lengths, _ = CORPORA["one document that whole rows fill"]
    inputs, targets = make_loader(numbered_dataset(lengths), rows=800 // 16).batch(0)
    assert ((targets - inputs) % 800 == 1).all()  # one document is a ring


def test_rows_keep_the_text_together():
    inputs, targets = make_loader(numbered_dataset([500] * 40), rows=1000).batch(0)
    assert (targets - inputs == 1).float().mean() > 1 - 1 / 400


@pytest.mark.parametrize("corpus", ["one document", "shards"])
def test_consecutive_rows_are_from_different_places(corpus):
    lengths, documents_per_shard = CORPORA[corpus]
    loader = make_loader(numbered_dataset(lengths, documents_per_shard), rows=sum(lengths) // 16)
    _, targets = loader.batch(0)
    continues = targets[1:, 0] == targets[:-1, -1] + 1
    assert continues.sum() <= 4


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 7), st.sampled_from([1, 8])), min_size=1, max_size=10))
def test_calls_in_any_order_give_the_same(calls):
    """Of one rank rows are read ahead, of several not."""
    dataset = numbered_dataset(*CORPORA["shards"])
    loader = make_loader(dataset, rows=9)
    for step, rank, world_size in calls:
        inputs, targets = loader.batch(step, rank % world_size, world_size)
        fresh_inputs, fresh_targets = make_loader(dataset, rows=9).batch(step, rank % world_size, world_size)
        assert torch.equal(inputs, fresh_inputs)
        assert torch.equal(targets, fresh_targets)


def test_only_the_position_matters_not_the_size_of_the_batches_before():
    dataset = numbered_dataset(*CORPORA["shards"])
    straight = make_loader(dataset, rows=6).batch(10)[1]
    doubled = make_loader(dataset, rows=12, changes=((5, 6),)).batch(5)[1]
    assert torch.equal(straight, doubled)


def test_batches_of_another_seed_are_others():
    dataset = numbered_dataset(*CORPORA["shards"])
    assert not torch.equal(make_loader(dataset, seed=1).batch(0)[1], make_loader(dataset, seed=2).batch(0)[1])


def test_changing_a_batch_in_place_changes_no_other():
    loader = make_loader(numbered_dataset([100]))
    inputs, targets = loader.batch(0)
    expected = targets.clone()
    inputs.zero_()
    assert torch.equal(targets, expected)
    assert torch.equal(loader.batch(0)[1], expected)


def test_one_batch_can_hold_many_epochs():
    _, targets = make_loader(numbered_dataset([17, 3]), rows=25).batch(0)  # 25 rows * 16 tokens = 20 epochs * 20 tokens
    assert torch.bincount(targets.flatten()).tolist() == [20] * 20


@pytest.mark.parametrize("lengths", [[16], [1], [10, 6]])
def test_fewer_tokens_than_a_row_needs_name_count_and_minimum(lengths):
    with pytest.raises(DataError, match=rf"{sum(lengths)} tokens.*at least 17"):
        make_loader(numbered_dataset(lengths))


def test_context_length_and_one_token_are_enough():
    _, targets = make_loader(numbered_dataset([17]), rows=17).batch(0)
    assert torch.bincount(targets.flatten()).tolist() == [16] * 17


@pytest.mark.parametrize(("step", "rank", "world_size"), [(-1, 0, 1), (0, 1, 1), (0, -1, 2), (0, 0, 0)])
def test_batches_that_do_not_exist_are_refused(step, rank, world_size):
    with pytest.raises(ValueError, match="no batch"):
        make_loader(numbered_dataset([100])).batch(step, rank, world_size)


def test_schedule_of_another_context_length_is_refused():
    with pytest.raises(ValueError, match="context_length = 8"):
        BatchLoader(
            numbered_dataset([100]), context_length=8, schedule=BatchSchedule(context_length=16, rows=1), seed=1
        )


def dataset_of(shards: list[Shard]) -> TokenDataset:
    return dataclasses.replace(TokenDataset.from_documents([[0]], vocab_size=8), shards=shards)


def test_step_of_a_million_is_found_in_a_second():
    no_memory = np.broadcast_to(np.uint16(7), (10**8,))
    shard = Shard(path=Path("fake"), tokens=no_memory, document_ends=np.arange(1, 100_001) * 1000)
    dataset = dataset_of([shard] * 1000)
    started = time.perf_counter()
    loader = make_loader(dataset, rows=480, context_length=1024)
    _, targets = loader.batch(10**6)
    assert time.perf_counter() - started < 1
    assert targets.shape == (480, 1024)
    assert loader._stream._documents.cache_info().misses <= 3  # of 1000 shards, the orders of those that it reads


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of mapped pages")
def test_mapped_pages_do_not_grow_with_what_was_read(tmp_path, monkeypatch):
    def mapped_mib() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssFile"))

    monkeypatch.setattr(loader_module, "READS_KEPT_MAPPED", 64)
    path = tmp_path / "tokens.bin"
    path.write_bytes(bytes(64 << 20))
    tokens = np.memmap(path, dtype=np.uint8, mode="r")[128:].view(np.uint16)
    dataset = dataset_of([Shard(path=path, tokens=tokens, document_ends=np.array([len(tokens)]))])
    loader = make_loader(dataset, rows=64, context_length=1024)
    loader.batch(0)
    before = mapped_mib()
    for step in range(1, 400):
        loader.batch(step)
    assert mapped_mib() - before < 16
