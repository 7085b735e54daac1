"""Held-out windows are the same every time and cover every target once, on any number of ranks."""

import pytest
import torch

from quillgpt.data.held_out import IGNORED_TARGET, HeldOutWindows
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import DataError


def make_windows(token_count: int, *, context_length: int = 8, max_tokens: int = 10_000) -> HeldOutWindows:
    """Windows of the tokens 1, 2, 3, ... in documents of 5 and shards of 15 tokens."""
    tokens = range(1, token_count + 1)
    documents = [tokens[start : start + 5] for start in range(0, token_count, 5)]
    dataset = TokenDataset.from_documents(documents, vocab_size=token_count + 1, documents_per_shard=3)
    return HeldOutWindows(dataset=dataset, context_length=context_length, max_tokens=max_tokens)


def scored_pairs(windows: HeldOutWindows, batch_size: int = 3, world_size: int = 1) -> list[tuple[int, int]]:
    """The (input, target) pairs of all ranks in order, without padding."""
    pairs = []
    for rank in range(world_size):
        for inputs, targets in windows.batches(batch_size, rank, world_size):
            kept = targets != IGNORED_TARGET
            pairs += zip(inputs[kept].tolist(), targets[kept].tolist(), strict=True)
    return pairs


@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize("token_count", [2, 8, 9, 10, 16, 17, 100])
def test_every_token_but_the_first_is_a_target_once_in_file_order(token_count, world_size):
    pairs = scored_pairs(make_windows(token_count), world_size=world_size)
    assert pairs == [(token, token + 1) for token in range(1, token_count)]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("token_count", [2, 7, 8, 9, 100])
def test_after_an_end_of_text_every_token_is_a_target_once(token_count, world_size):
    plain = make_windows(token_count)
    windows = HeldOutWindows(plain.dataset, plain.context_length, plain.max_tokens, before=(0,))
    pairs = scored_pairs(windows, world_size=world_size)
    assert pairs == [(token, token + 1) for token in range(token_count)]
    assert windows.target_count == token_count


@pytest.mark.parametrize("max_tokens", [1, 7, 8, 9, 50, 99, 100])
def test_target_count_is_what_the_windows_have(max_tokens):
    windows = make_windows(100, max_tokens=max_tokens)
    assert windows.target_count == len(scored_pairs(windows)) == min(max_tokens, 99)


@pytest.mark.parametrize(("token_count", "window_count"), [(2, 1), (9, 1), (10, 2), (17, 2), (18, 3)])
def test_window_count_includes_the_shorter_last_window(token_count, window_count):
    windows = make_windows(token_count)
    assert windows.window_count == window_count
    assert sum(len(inputs) for inputs, _ in windows.batches(2)) == window_count


def test_window_starts_where_the_one_before_ends():
    inputs, targets = next(make_windows(100).batches(4))
    assert inputs[:, 0].tolist() == [1, 9, 17, 25]
    assert targets[:, -1].tolist() == [9, 17, 25, 33]


def test_last_window_is_padded_with_targets_that_the_loss_ignores():
    ((inputs, targets),) = make_windows(5).batches(1)
    assert inputs.tolist() == [[1, 2, 3, 4, 0, 0, 0, 0]]
    assert targets.tolist() == [[2, 3, 4, 5] + [IGNORED_TARGET] * 4]
    logits = torch.zeros(8, 6)
    loss = torch.nn.functional.cross_entropy(logits, targets[0], reduction="sum")
    torch.testing.assert_close(loss, 4 * torch.tensor(6.0).log())


def test_two_evaluations_read_the_same():
    windows = make_windows(100)
    for first, second in zip(windows.batches(3), windows.batches(3), strict=True):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("token_count", [0, 1])
def test_too_little_held_out_text_names_count_and_minimum(token_count):
    with pytest.raises(DataError, match=rf"{token_count} tokens, at least 2"):
        make_windows(token_count)


@pytest.mark.parametrize(("context_length", "max_tokens"), [(0, 5), (8, 0)])
def test_sizes_below_one_are_refused(context_length, max_tokens):
    with pytest.raises(ValueError, match="at least 1"):
        make_windows(10, context_length=context_length, max_tokens=max_tokens)


@pytest.mark.parametrize(("batch_size", "rank", "world_size"), [(0, 0, 1), (1, 1, 1), (1, -1, 2)])
def test_batches_that_do_not_exist_are_refused(batch_size, rank, world_size):
    with pytest.raises(ValueError, match="no held-out batches"):
        next(make_windows(10).batches(batch_size, rank, world_size))
