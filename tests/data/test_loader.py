"""Every token is a target exactly once per epoch, and a batch depends only on the seed and the tokens before it.

Validation windows are the same every time and cover every target once, on any number of ranks.
"""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quillgpt.data import loader as loader_module
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.loader import BatchLoader, BatchSchedule, ValidationWindows
from quillgpt.data.shards import Shard
from quillgpt.errors import DataError
from quillgpt.model.loss import IGNORED_TARGET

# lengths of documents, and documents per shard (0: one shard)
CORPORA = {
    "one document": ([1003], 0),
    "one document that complete sequences fill": ([800], 0),
    "short documents": ([1, 3, 2, 9, 4] * 50, 0),
    "shards": ([7, 30, 1, 200, 55] * 9, 4),
    "one document per shard": ([101, 99, 250], 1),
    "sequences longer than documents": ([1] * 40, 7),
    "barely one sequence": ([11, 6], 0),
}


def numbered_dataset(lengths: list[int], documents_per_shard: int = 0) -> TokenDataset:
    """A data set whose tokens are 0, 1, 2, ...: a token says where it is."""
    ends = np.cumsum(lengths)
    documents = [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return TokenDataset.from_documents(documents, vocab_size=int(ends[-1]), documents_per_shard=documents_per_shard)


def make_loader(
    dataset: TokenDataset, *, batch_size: int = 5, changes=(), seed: int = 1, context_length: int = 16, window: int = 0
) -> BatchLoader:
    schedule = BatchSchedule(context_length=context_length, global_batch_size=batch_size, changes=changes)
    return BatchLoader(dataset, context_length=context_length, schedule=schedule, seed=seed, block_sequences=window)


def global_batch(loader: BatchLoader, step: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [loader.batch(step, rank, world_size) for rank in range(world_size)]
    return torch.cat([inputs for inputs, _ in parts]), torch.cat([targets for _, targets in parts])


def test_a_schedule_says_each_steps_batch_size_and_first_token() -> None:
    schedule = BatchSchedule(context_length=10, global_batch_size=3, changes=((4, 5), (5, 2), (9, 8)))
    sizes = [schedule.global_batch_size_at(step) for step in range(15)]
    assert sizes == [3, 3, 3, 3, 5, 2, 2, 2, 2, 8, 8, 8, 8, 8, 8]
    assert [schedule.first_token(step) for step in range(15)] == [10 * sum(sizes[:step]) for step in range(15)]
    constant = BatchSchedule(context_length=1024, global_batch_size=480)
    assert (constant.global_batch_size_at(10**6), constant.first_token(10**6)) == (480, 480 * 1024 * 10**6)


def test_schedules_and_batches_that_cannot_exist_are_refused() -> None:
    for changes in [((0, 5),), ((4, 5), (4, 6)), ((4, 5), (3, 6)), ((4, 0),)]:
        with pytest.raises(ValueError, match=r"must be >= 1|must increase"):
            BatchSchedule(context_length=10, global_batch_size=3, changes=changes)
    dataset = numbered_dataset([100])
    for step, rank, world_size in [(-1, 0, 1), (0, 1, 1), (0, -1, 2), (0, 0, 0)]:
        with pytest.raises(ValueError, match="invalid batch"):
            make_loader(dataset).batch(step, rank, world_size)
    with pytest.raises(ValueError, match=r"invalid context_length: 8 \(the schedule has 16\)"):
        BatchLoader(dataset, context_length=8, schedule=BatchSchedule(context_length=16, global_batch_size=1), seed=1)
    for lengths in ([16], [1], [10, 6]):
        with pytest.raises(DataError, match=rf"{sum(lengths)} tokens.*at least 17"):
            make_loader(numbered_dataset(lengths))


def test_every_token_is_a_target_exactly_once_per_epoch() -> None:
    faults = []
    for name, corpus in CORPORA.items():
        dataset = numbered_dataset(*corpus)
        for world_size, window in [(1, 8192), (1, 3), (2, 3), (8, 8192)]:
            loader = make_loader(dataset, changes=((2, 8), (4, 13)), window=window)
            epochs, token_count = 3, dataset.token_count
            sequence_count = -(-epochs * token_count // 16)  # the last one also has the first tokens of the next epoch
            batches, step = [], 0
            while sum(map(len, batches)) < sequence_count:
                batches.append(global_batch(loader, step, world_size)[1])
                step += 1
            counts = torch.bincount(torch.cat(batches)[:sequence_count].flatten(), minlength=token_count).tolist()
            next_epoch = sequence_count * 16 - epochs * token_count
            if sorted(counts) != [epochs] * (token_count - next_epoch) + [epochs + 1] * next_epoch:
                faults.append((name, world_size, window))
    assert faults == []


def test_the_ranks_batches_in_order_are_the_global_batch_and_differ_by_at_most_one_sequence() -> None:
    loader = make_loader(numbered_dataset(*CORPORA["shards"]), batch_size=13)
    for world_size in (2, 3, 8, 20):
        for step in range(4):
            for parts, alone in zip(global_batch(loader, step, world_size), loader.batch(step), strict=True):
                assert torch.equal(parts, alone), (world_size, step)
        sizes = [len(loader.batch(0, rank, world_size)[0]) for rank in range(world_size)]
        assert max(sizes) - min(sizes) <= 1, world_size


def test_a_target_is_the_token_after_its_input_even_the_very_first() -> None:
    for name, corpus in CORPORA.items():
        inputs, targets = make_loader(numbered_dataset(*corpus), batch_size=40).batch(3)
        assert inputs.shape == targets.shape == (40, 16), name
        assert inputs.dtype == targets.dtype == torch.int64, name
        assert torch.equal(inputs[:, 1:], targets[:, :-1]), name
    inputs, targets = make_loader(numbered_dataset([800]), batch_size=800 // 16).batch(0)
    assert ((targets - inputs) % 800 == 1).all()  # one document is a ring


def test_a_sequence_is_continuous_text_and_the_next_one_is_from_elsewhere() -> None:
    inputs, targets = make_loader(numbered_dataset([500] * 40), batch_size=1000).batch(0)
    assert (targets - inputs == 1).float().mean() > 1 - 1 / 400
    for name in ("one document", "shards"):
        lengths, documents_per_shard = CORPORA[name]
        loader = make_loader(numbered_dataset(lengths, documents_per_shard), batch_size=sum(lengths) // 16)
        _, targets = loader.batch(0)
        assert (targets[1:, 0] == targets[:-1, -1] + 1).sum() <= 4, name


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 7), st.sampled_from([1, 8])), min_size=1, max_size=10))
def test_calls_in_any_order_give_the_same(calls: list[tuple[int, int, int]]) -> None:
    """A single rank prefetches, several do not."""
    dataset = numbered_dataset(*CORPORA["shards"])
    loader = make_loader(dataset, batch_size=9)
    for step, rank, world_size in calls:
        inputs, targets = loader.batch(step, rank % world_size, world_size)
        fresh_inputs, fresh_targets = make_loader(dataset, batch_size=9).batch(step, rank % world_size, world_size)
        assert torch.equal(inputs, fresh_inputs)
        assert torch.equal(targets, fresh_targets)


def test_a_batch_depends_on_the_tokens_before_it_and_the_seed_alone() -> None:
    dataset = numbered_dataset(*CORPORA["shards"])
    expected = make_loader(dataset, batch_size=6).batch(10)[1]
    assert torch.equal(make_loader(dataset, batch_size=12, changes=((5, 6),)).batch(5)[1], expected)
    assert not torch.equal(make_loader(dataset, batch_size=6, seed=2).batch(10)[1], expected)


def test_changing_a_batch_in_place_changes_no_other() -> None:
    loader = make_loader(numbered_dataset([100]))
    inputs, targets = loader.batch(0)
    expected = targets.clone()
    inputs.zero_()
    assert torch.equal(targets, expected)
    assert torch.equal(loader.batch(0)[1], expected)


def dataset_of(shards: list[Shard]) -> TokenDataset:
    return dataclasses.replace(TokenDataset.from_documents([[0]], vocab_size=8), shards=shards)


def test_step_one_million_is_found_in_a_second() -> None:
    no_memory = np.broadcast_to(np.uint16(7), (10**8,))
    shard = Shard(path=Path("fake"), tokens=no_memory, document_ends=np.arange(1, 100_001) * 1000)
    dataset = dataset_of([shard] * 1000)
    started = time.process_time()
    loader = make_loader(dataset, batch_size=480, context_length=1024)
    _, targets = loader.batch(10**6)
    assert time.process_time() - started < 1
    assert targets.shape == (480, 1024)
    assert loader._stream._documents.cache_info().misses <= 3  # of 1000 shards, the orders of those that it reads


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of mapped pages")
def test_mapped_pages_do_not_grow_with_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mapped_mib() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssFile"))

    monkeypatch.setattr(loader_module, "MAX_MAPPED_READS", 64)
    path = tmp_path / "tokens.bin"
    path.write_bytes(bytes(64 << 20))
    tokens = np.memmap(path, dtype=np.uint8, mode="r")[128:].view(np.uint16)
    dataset = dataset_of([Shard(path=path, tokens=tokens, document_ends=np.array([len(tokens)]))])
    loader = make_loader(dataset, batch_size=64, context_length=1024)
    loader.batch(0)
    before = mapped_mib()
    for step in range(1, 150):
        loader.batch(step)
    assert mapped_mib() - before < 16


def make_windows(token_count: int, *, max_tokens: int = 10_000, **more) -> ValidationWindows:
    """Windows of 8 of the tokens 1, 2, 3, ... in documents of 5 and shards of 15 tokens."""
    tokens = range(1, token_count + 1)
    documents = [tokens[start : start + 5] for start in range(0, token_count, 5)]
    dataset = TokenDataset.from_documents(documents, vocab_size=token_count + 1, documents_per_shard=3)
    return ValidationWindows(**{"dataset": dataset, "context_length": 8, "max_tokens": max_tokens, **more})


def scored_pairs(windows: ValidationWindows, batch_size: int = 3, world_size: int = 1) -> list[tuple[int, int]]:
    """The (input, target) pairs of all ranks in order, without padding."""
    pairs = []
    for rank in range(world_size):
        for inputs, targets in windows.batches(batch_size, rank, world_size):
            kept = targets != IGNORED_TARGET
            pairs += zip(inputs[kept].tolist(), targets[kept].tolist(), strict=True)
    return pairs


@settings(deadline=None)
@given(st.integers(2, 100), st.integers(1, 110), st.integers(1, 4), st.sampled_from([1, 2, 3, 8]), st.booleans())
def test_every_token_is_scored_once_in_file_order(token_count, max_tokens, batch_size, world_size, has_prefix) -> None:
    """All but the first; after an end of text, here 0, the first too."""
    windows = make_windows(token_count, max_tokens=max_tokens, before=(0,) if has_prefix else ())
    pairs = scored_pairs(windows, batch_size, world_size)
    expected = [(token, token + 1) for token in range(0 if has_prefix else 1, token_count)][:max_tokens]
    assert pairs == scored_pairs(windows, batch_size, world_size) == expected
    assert windows.target_count == len(expected)
    assert windows.window_count == sum(len(inputs) for inputs, _ in windows.batches(2)) == -(-len(expected) // 8)


def test_windows_follow_each_other_and_the_last_is_padded_with_targets_that_the_loss_ignores() -> None:
    inputs, targets = next(make_windows(100).batches(4))
    assert inputs[:, 0].tolist() == [1, 9, 17, 25]
    assert targets[:, -1].tolist() == [9, 17, 25, 33]
    ((inputs, targets),) = make_windows(5).batches(1)
    assert inputs.tolist() == [[1, 2, 3, 4, 0, 0, 0, 0]]
    assert targets.tolist() == [[2, 3, 4, 5] + [IGNORED_TARGET] * 4]
    loss = torch.nn.functional.cross_entropy(torch.zeros(8, 6), targets[0], reduction="sum")
    torch.testing.assert_close(loss, 4 * torch.tensor(6.0).log())


def test_windows_that_cannot_exist_are_refused() -> None:
    for token_count in (0, 1):
        with pytest.raises(DataError, match=rf"{token_count} tokens, at least 2"):
            make_windows(token_count)
    for sizes in ({"context_length": 0}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match=r"each must be >= 1"):
            make_windows(10, **sizes)
    for batch_size, rank, world_size in [(0, 0, 1), (1, 1, 1), (1, -1, 2)]:
        with pytest.raises(ValueError, match="invalid batches"):
            next(make_windows(10).batches(batch_size, rank, world_size))
