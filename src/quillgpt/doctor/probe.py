"""Short looks at a checkpoint and the run's data: what the model gives there, to compare with what was recorded."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.data.held_out import IGNORED_TARGET, HeldOutWindows
from quillgpt.data.loader import BatchLoader
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.evaluate.held_out_loss import autocast, evaluation_mode
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import flops_per_token

PROBE_FLOPS = 4e11  # several seconds of a core for each look
FEWEST_TOKENS = 4096
LOGIT_ELEMENTS = 1 << 25  # logits that exist at one time: 128 MiB in fp32
OFFSETS = (-2, -1, 0, 1, 2)
LOGGED_BATCHES = 20
FEWEST_BATCHES = 8
MOST_COUNTED = 1_000_000
STRETCHES = 64


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Losses on held-out windows, nats per token, dropout off but for `with_dropout` (None: the model has none).

    `by_offset`: the loss on the tokens so many places after the next one; offset 0 is the loss. `is_whole` where all
    windows of the run's own evaluation were scored. `repeats`: whether a second look gave the same digits.
    """

    loss: float
    standard_error: float
    tokens: int
    is_whole: bool
    with_dropout: float | None
    by_offset: dict[int, float]
    repeats: bool


@dataclass(frozen=True, kw_only=True)
class Frequencies:
    """How common the tokens are: what frequencies alone predict, and how far the held-out ones are from the training's.

    `unigram_loss`: nats per held-out token of guessing by the training text's frequencies. `distance` is half the sum
    of differences between the frequencies of held-out and training tokens, `distance_within` between two parts of the
    training tokens of that size.
    """

    unigram_loss: float
    distance: float
    distance_within: float


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Single steps of the run: the loss that was logged, and what the checkpoint gives now on the step's batch.

    `expected` is the batch that seed and data say, `in_order` the one that reading the files from the start would give;
    `first` is the loss on the run's very first batch. All (n,) but `first`.
    """

    steps: np.ndarray
    logged: np.ndarray
    expected: np.ndarray
    in_order: np.ndarray
    first: float


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the looks at a checkpoint gave. `recorded`: the held-out loss in the metrics of its step."""

    step: int
    recorded: float | None
    held_out: HeldOut
    frequencies: Frequencies
    batches: Batches | None


def affordable_tokens(model: GPT) -> int:
    """Tokens that a look may score."""
    return max(FEWEST_TOKENS, int(PROBE_FLOPS / (flops_per_token(model.config) / 3)))


@torch.no_grad()
def look_at_held_out(model: GPT, windows: HeldOutWindows, *, dtype: torch.dtype) -> HeldOut:
    """Score the windows of an evaluation, or an evenly spaced part of them where all take too long."""
    chosen = min(windows.window_count, max(1, affordable_tokens(model) // windows.context_length))
    stride = -(-windows.window_count // chosen)
    rows = itertools.islice(windows.batches(1), 0, None, stride)
    size = max(1, min(16, LOGIT_ELEMENTS // (windows.context_length * model.config.vocab_size)))
    sums: dict[int, list[Tensor]] = {offset: [] for offset in OFFSETS}
    counts: dict[int, list[Tensor]] = {offset: [] for offset in OFFSETS}
    dropped, repeats = [], True
    with autocast("cpu", dtype), torch.random.fork_rng():
        torch.manual_seed(0)
        for number, part in enumerate(_in_batches(rows, size)):
            inputs, targets = (torch.cat(tensors) for tensors in zip(*part, strict=True))
            with evaluation_mode(model):
                logits = model(inputs).float()
                repeats = repeats and (number > 0 or torch.equal(logits, model(inputs).float()))
            for offset in OFFSETS:
                nats, counted = _summed(logits, _shifted(inputs, targets, offset))
                sums[offset].append(nats)
                counts[offset].append(counted)
            if model.config.dropout:
                model.train()
                dropped.append(_summed(model(inputs).float(), targets)[0])
                model.eval()
    nats, counted = torch.cat(sums[0]), torch.cat(counts[0])
    tokens = int(counted.sum().item())
    loss = nats.sum().item() / tokens
    residuals = nats - loss * counted
    count = len(nats)
    return HeldOut(
        loss=loss,
        standard_error=math.sqrt(count / max(1, count - 1) * residuals.square().sum().item()) / tokens,
        tokens=tokens,
        is_whole=stride == 1,
        with_dropout=torch.cat(dropped).sum().item() / tokens if dropped else None,
        by_offset={
            offset: torch.cat(sums[offset]).sum().item() / max(1.0, torch.cat(counts[offset]).sum().item())
            for offset in OFFSETS
        },
        repeats=repeats,
    )


def _in_batches(rows: Iterator[tuple[Tensor, Tensor]], size: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    while part := list(itertools.islice(rows, size)):
        yield part


def _shifted(inputs: Tensor, targets: Tensor, offset: int) -> Tensor:
    """The tokens `offset` places after the targets, (B, T); IGNORED_TARGET where the window has none."""
    window = torch.cat([inputs[:, :1], targets], dim=1)  # token 0 to token T; the target of position i is token i + 1
    length = targets.shape[1]
    shifted = torch.full_like(targets, IGNORED_TARGET)
    first, last = max(0, -1 - offset), min(length, length - offset)
    shifted[:, first:last] = window[:, first + 1 + offset : last + 1 + offset]
    return shifted


def _summed(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats and counted targets of each row, (B,) float64 each."""
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_TARGET, reduction="none")
    return nats.view(targets.shape).double().sum(dim=1), (targets != IGNORED_TARGET).sum(dim=1).double()


@torch.no_grad()
def look_at_batches(
    model: GPT,
    loader: BatchLoader,
    dataset: TokenDataset,
    logged: list[tuple[int, int, float]],
    *,
    dtype: torch.dtype,
) -> Batches:
    """Score the batches of logged steps; `logged` has (step from 1, tokens before it, loss) of each."""
    with evaluation_mode(model), autocast("cpu", dtype):
        expected, in_order = [], []
        for step, position, _ in logged:
            inputs, targets = loader.batch(step - 1)
            expected.append(_mean_loss(model, inputs, targets))
            in_order.append(_mean_loss(model, *_read_in_order(dataset, position, inputs.shape)))
        first = _mean_loss(model, *loader.batch(0))
    steps, _, losses = zip(*logged, strict=True)
    return Batches(
        steps=np.array(steps),
        logged=np.array(losses),
        expected=np.array(expected),
        in_order=np.array(in_order),
        first=first,
    )


def _mean_loss(model: GPT, inputs: Tensor, targets: Tensor) -> float:
    size = max(1, LOGIT_ELEMENTS // (inputs.shape[1] * model.config.vocab_size))
    parts = zip(inputs.split(size), targets.split(size), strict=True)
    return sum(_summed(model(tokens).float(), wanted)[0].sum().item() for tokens, wanted in parts) / targets.numel()


def _read_in_order(dataset: TokenDataset, position: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The batch of this shape that begins `position` tokens after the start of the files, around and around."""
    rows, length = shape
    tokens = torch.from_numpy(stretch(dataset, position, rows * length + 1).astype(np.int64))
    return tokens[:-1].view(rows, length), tokens[1:].view(rows, length)


def stretch(dataset: TokenDataset, start: int, count: int) -> np.ndarray:
    """`count` tokens of a split from `start` on, in the order of its files, from the end on to the beginning."""
    found: list[np.ndarray] = []
    place = start % dataset.token_count
    while count > 0:
        begin = 0
        for shard in dataset.shards:
            tokens = shard.tokens[max(0, place - begin) : max(0, place - begin) + count]
            if len(tokens) and place < begin + len(shard.tokens):
                found.append(np.asarray(tokens))
                count -= len(tokens)
                place += len(tokens)
            begin += len(shard.tokens)
            if count == 0:
                break
        place = 0
    return np.concatenate(found)


def look_at_frequencies(train: TokenDataset, held_out: TokenDataset) -> Frequencies:
    """Count the tokens of evenly spaced stretches of both splits; training tokens in two parts, to know the noise."""
    count = min(held_out.token_count, train.token_count // 2, MOST_COUNTED)
    one, other = (_counts(train, count, part) for part in (0, 1))
    theirs = _counts(held_out, count, 0)
    share = (one + other + 0.5) / (one + other + 0.5).sum()
    return Frequencies(
        unigram_loss=float(-(theirs / theirs.sum() * np.log(share)).sum()),
        distance=_distance(one, theirs),
        distance_within=_distance(one, other),
    )


def _counts(dataset: TokenDataset, count: int, part: int) -> np.ndarray:
    """How often each token is in about `count` tokens, of every second stretch of the split (`part` 0 or 1)."""
    length = -(-count // STRETCHES)
    starts = [dataset.token_count * (2 * number + part) // (2 * STRETCHES) for number in range(STRETCHES)]
    tokens = np.concatenate([stretch(dataset, start, length) for start in starts])
    return np.bincount(tokens, minlength=dataset.vocab_size).astype(np.float64)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one / one.sum() - other / other.sum()).sum() / 2)
