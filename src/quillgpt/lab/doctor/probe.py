"""Score text with a run's checkpoint, to compare the results with what the run recorded."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.data.dataset import TokenDataset
from quillgpt.data.loader import BatchLoader, ValidationWindows
from quillgpt.model.gpt import GPT
from quillgpt.model.loss import IGNORED_TARGET
from quillgpt.model.precision import autocast, evaluation_mode
from quillgpt.model.sizes import flops_per_token

PROBE_FLOPS = 4e11  # several seconds of one core for each probe
FEWEST_TOKENS = 4096
LOGIT_ELEMENTS = 1 << 25  # logits in memory at a time: 128 MiB in fp32
OFFSETS = (-2, -1, 0, 1, 2)
LOGGED_BATCHES, FEWEST_BATCHES = 20, 8
MOST_COUNTED = 1_000_000
STRETCHES = 64


@dataclass(frozen=True, kw_only=True)
class ValidationScores:
    """Losses on validation windows in nats per token, without dropout except `with_dropout` (None: the model has none).

    `by_offset`: the loss on the tokens that many places after the next one; `loss` is that of offset 0. `is_full`: all
    windows of the run's own evaluation were scored. `repeats`: a second pass gave the same digits.
    """

    loss: float
    standard_error: float
    tokens: int
    is_full: bool
    with_dropout: float | None
    by_offset: dict[int, float]
    repeats: bool


@dataclass(frozen=True, kw_only=True)
class Frequencies:
    """How frequent the tokens are.

    `unigram_loss`: nats per validation token if predicted by the frequencies of the training text. `distance`: total
    variation distance between the frequencies of validation and training tokens; `distance_within`: between two parts
    of the training tokens of that size.
    """

    unigram_loss: float
    distance: float
    distance_within: float


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Logged steps, (n,) each: the logged loss, and the checkpoint's loss on batches of these steps.

    `expected`: on the batch given by seed and data. `in_order`: on the batch that reading the files from the start
    would give. `first`: the loss on the batch of the run's first step.
    """

    steps: np.ndarray
    logged: np.ndarray
    expected: np.ndarray
    in_order: np.ndarray
    first: float


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The results of probing a checkpoint. `recorded`: the validation loss in the metrics of its step."""

    step: int
    recorded: float | None
    validation: ValidationScores
    frequencies: Frequencies
    batches: Batches | None


def affordable_tokens(model: GPT) -> int:
    """Tokens that a probe may score."""
    return max(FEWEST_TOKENS, int(PROBE_FLOPS / (flops_per_token(model.config) / 3)))


@torch.no_grad()
def probe_validation(model: GPT, windows: ValidationWindows, *, dtype: torch.dtype) -> ValidationScores:
    """Score the windows of an evaluation, or evenly spaced ones if all take too long."""
    chosen = min(windows.window_count, max(1, affordable_tokens(model) // windows.context_length))
    stride = -(-windows.window_count // chosen)
    rows = itertools.islice(windows.batches(1), 0, None, stride)
    size = max(1, min(16, LOGIT_ELEMENTS // (windows.context_length * model.config.vocab_size)))
    sums: dict[int, list[Tensor]] = {offset: [] for offset in OFFSETS}  # (2, B) of each batch: nats, targets
    dropped, repeats = [], True
    with autocast("cpu", dtype), torch.random.fork_rng():
        torch.manual_seed(0)
        while part := list(itertools.islice(rows, size)):
            inputs, targets = (torch.cat(tensors) for tensors in zip(*part, strict=True))
            with evaluation_mode(model):
                logits = model(inputs).float()
                if not sums[0]:
                    repeats = torch.equal(logits, model(inputs).float())
            for offset in OFFSETS:
                sums[offset].append(_summed(logits, _shifted(inputs, targets, offset)))
            if model.config.dropout:
                model.train()
                dropped.append(_summed(model(inputs).float(), targets)[0])
                model.eval()
    nats, counted = torch.cat(sums[0], dim=1)
    tokens = int(counted.sum().item())
    loss = nats.sum().item() / tokens
    residuals = nats - loss * counted
    variance = len(nats) / max(1, len(nats) - 1) * residuals.square().sum().item()
    by_offset = {offset: torch.cat(parts, dim=1).sum(dim=1).tolist() for offset, parts in sums.items()}
    return ValidationScores(
        loss=loss,
        standard_error=math.sqrt(variance) / tokens,
        tokens=tokens,
        is_full=stride == 1,
        with_dropout=torch.cat(dropped).sum().item() / tokens if dropped else None,
        by_offset={offset: total / max(1.0, count) for offset, (total, count) in by_offset.items()},
        repeats=repeats,
    )


def _shifted(inputs: Tensor, targets: Tensor, offset: int) -> Tensor:
    """The tokens `offset` places after the targets, (B, T); IGNORED_TARGET where the window has none."""
    window = torch.cat([inputs[:, :1], targets], dim=1)  # tokens 0 to T; the target of position i is token i + 1
    length = targets.shape[1]
    shifted = torch.full_like(targets, IGNORED_TARGET)
    first, last = max(0, -1 - offset), min(length, length - offset)
    shifted[:, first:last] = window[:, first + 1 + offset : last + 1 + offset]
    return shifted


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats and number of counted targets of each row, (2, B) float64."""
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_TARGET, reduction="none")
    return torch.stack([nats.view(targets.shape).double().sum(dim=1), (targets != IGNORED_TARGET).sum(dim=1).double()])


@torch.no_grad()
def probe_batches(
    model: GPT, loader: BatchLoader, dataset: TokenDataset, logged: list[tuple[int, int, float]], *, dtype: torch.dtype
) -> Batches:
    """Score the batches of logged steps, each (step from 1, tokens before it, loss)."""
    expected, in_order = [], []
    with evaluation_mode(model), autocast("cpu", dtype):
        for step, position, _ in logged:
            inputs, targets = loader.batch(step - 1)
            expected.append(_mean_loss(model, inputs, targets))
            tokens = torch.from_numpy(tokens_from(dataset, position, inputs.numel() + 1))
            in_order.append(_mean_loss(model, tokens[:-1].view(inputs.shape), tokens[1:].view(inputs.shape)))
        first = _mean_loss(model, *loader.batch(0))
    steps, _, losses = map(np.array, zip(*logged, strict=True))
    return Batches(steps=steps, logged=losses, expected=np.array(expected), in_order=np.array(in_order), first=first)


def _mean_loss(model: GPT, inputs: Tensor, targets: Tensor) -> float:
    size = max(1, LOGIT_ELEMENTS // (inputs.shape[1] * model.config.vocab_size))
    parts = zip(inputs.split(size), targets.split(size), strict=True)
    return sum(_summed(model(tokens).float(), part)[0].sum().item() for tokens, part in parts) / targets.numel()


def tokens_from(dataset: TokenDataset, start: int, count: int) -> np.ndarray:
    """`count` tokens of a split from `start` on in file order, wrapping around at the end; (count,) int64."""
    positions = np.arange(start, start + count) % dataset.token_count
    ends = np.cumsum([len(shard.tokens) for shard in dataset.shards])
    shards = np.searchsorted(ends, positions, side="right")
    tokens = np.empty(count, dtype=np.int64)
    for number in np.unique(shards).tolist():
        shard = dataset.shards[number].tokens
        tokens[shards == number] = shard[positions[shards == number] - ends[number] + len(shard)]
    return tokens


def probe_frequencies(train: TokenDataset, validation: TokenDataset) -> Frequencies:
    """Count tokens in evenly spaced stretches of both splits; training tokens in two parts, to measure the noise."""
    count = min(validation.token_count, train.token_count // 2, MOST_COUNTED)
    one, other = (_counts(train, count, part) for part in (0, 1))
    counts = _counts(validation, count, 0)
    share = (one + other + 0.5) / (one + other + 0.5).sum()
    return Frequencies(
        unigram_loss=float(-(counts / counts.sum() * np.log(share)).sum()),
        distance=_distance(one, counts),
        distance_within=_distance(one, other),
    )


def _counts(dataset: TokenDataset, count: int, part: int) -> np.ndarray:
    """Counts of each token, (V,), in about `count` tokens of every second stretch of the split (`part` 0 or 1)."""
    length = -(-count // STRETCHES)
    starts = [dataset.token_count * (2 * number + part) // (2 * STRETCHES) for number in range(STRETCHES)]
    tokens = np.concatenate([tokens_from(dataset, start, length) for start in starts])
    return np.bincount(tokens, minlength=dataset.vocab_size).astype(np.float64)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one / one.sum() - other / other.sum()).sum() / 2)
