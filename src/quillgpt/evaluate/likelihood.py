"""The likelihood of a continuation after a context: all that a task asks of a model.

Candidates of one item mostly share their context. It is read once, and its keys and values are copied for each
candidate; contexts of one length are read as one batch, so that nothing is padded on the left and no mask is needed:

    contexts    a b c    d e f               two of length 3, read as one batch
    candidates  a b c|u v    a b c|w .    d e f|x y    d e f|z .      the tokens after | are read with the copied cache

Padding on the right has no effect: attention looks back only, and padding gets no logits. Logits are computed only
where a token of a continuation is predicted; with GPT-2's vocabulary they are a third of the work.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.errors import DataError, NonFiniteError
from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache
from quillgpt.model.precision import autocast, evaluation_mode

BATCH_TOKENS = 4096  # their keys and values take 300 MB for GPT-2 124M in fp32; for a moment they exist twice
LOGIT_ELEMENTS = 1 << 23  # logits that exist at one time: 34 MB in fp32; more do not fit into a processor's cache
SMALL_PADDING = 32  # tokens of padding that cost less than another batch
PADDING = 0  # any token: padding on the right has no effect

Tokens = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, order=True)
class Request:
    """One candidate: score `continuation` after `context`; at least one token each."""

    context: Tokens
    continuation: Tokens

    def __post_init__(self) -> None:
        if not self.context or not self.continuation:
            raise ValueError("context and continuation need at least one token each; end of text can be the context")


Scores = dict[Request, tuple[float, bool]]
"""log-probability, and whether every token was the first choice"""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The answer to one request.

    log_probability: nats, summed over the `tokens` of the continuation. is_greedy: each of them was the model's first
    choice. was_cut: the context lost tokens at its left end to fit context_length.
    """

    log_probability: float
    tokens: int
    is_greedy: bool
    was_cut: bool


def likelihoods(
    model: GPT,
    requests: Sequence[Request],
    *,
    dtype: torch.dtype = torch.float32,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Likelihood]:
    """Return the likelihood of each request, in their order; equal requests are computed once.

    The batches depend on the set of requests, not on their order. batch_tokens: the most tokens that are read, and
    whose keys and values are kept, at a time; one sequence may be longer. progress: gets the number of requests done.
    No random number is drawn, and the model keeps its mode.
    """
    fitted = [_fit(request, model.config.context_length) for request in requests]
    distinct = sorted(set(fitted))
    scores: Scores = {}
    device = str(next(model.parameters()).device)
    with evaluation_mode(model), torch.no_grad(), autocast(device, dtype):
        for batch in _score(model, distinct, dtype, batch_tokens):
            scores |= batch
            progress(len(scores) * len(requests) // len(distinct))
    return [
        Likelihood(
            log_probability=scores[fit][0],
            tokens=len(fit.continuation),
            is_greedy=scores[fit][1],
            was_cut=len(fit.context) < len(request.context),
        )
        for request, fit in zip(requests, fitted, strict=True)
    ]


def _fit(request: Request, context_length: int) -> Request:
    """The request with as much of the right end of its context as the model can see.

    The last token of a continuation is predicted and not read, so context and continuation may have one token more
    than context_length together. A continuation that leaves no room for one token of context is a `DataError`.
    """
    length = len(request.continuation)
    if length > context_length:
        got = f"a continuation of {length:,} tokens cannot be scored"
        raise DataError(
            f"{got}: this model sees context_length = {context_length:,}; use a model with a longer context"
        )
    return dataclasses.replace(request, context=request.context[-(context_length + 1 - length) :])


def _score(model: GPT, requests: list[Request], dtype: torch.dtype, batch_tokens: int) -> Iterator[Scores]:
    """Score sorted, distinct requests, a batch at a time."""
    by_context = {context: list(group) for context, group in groupby(requests, key=lambda request: request.context)}
    yield from _score_single(model, [group[0] for group in by_context.values() if len(group) == 1], batch_tokens)
    shared = sorted((context for context, group in by_context.items() if len(group) > 1), key=len)
    for length, group in groupby(shared, key=len):
        contexts, step = list(group), max(1, batch_tokens // length)
        for start in range(0, len(contexts), step):
            part = {context: by_context[context] for context in contexts[start : start + step]}
            yield from _score_shared(model, part, dtype, batch_tokens)


def _score_single(model: GPT, requests: list[Request], batch_tokens: int) -> Iterator[Scores]:
    """Score requests that share no context: whole sequences, those of similar length in one batch."""

    def inputs(request: Request) -> Tokens:
        return request.context + request.continuation[:-1]

    for batch in _batches(requests, lambda request: len(inputs(request)), batch_tokens):
        hidden = model.hidden(_padded([inputs(request) for request in batch], model))  # (B, T, C)
        starts = [len(request.context) - 1 for request in batch]  # the last token of the context predicts the first
        states = [
            row[start : start + len(request.continuation)]
            for row, start, request in zip(hidden, starts, batch, strict=True)
        ]
        yield _read_scores(model, batch, torch.cat(states))


def _score_shared(
    model: GPT, by_context: dict[Tokens, list[Request]], dtype: torch.dtype, batch_tokens: int
) -> Iterator[Scores]:
    """Score requests by their contexts, which all have one length and are read once."""
    contexts, weight = list(by_context), next(model.parameters())
    length, cache_dtype = len(contexts[0]), weight.dtype if dtype == torch.float32 else dtype
    row_of = {context: row for row, context in enumerate(contexts)}
    cache = KVCache(model.config, len(contexts), weight.device, cache_dtype, capacity=length)
    last = model.hidden(torch.tensor(contexts, device=weight.device), cache)[:, -1]  # (contexts, C)
    requests = [request for group in by_context.values() for request in group]
    for batch in _batches(requests, lambda request: length + len(request.continuation) - 1, batch_tokens):
        rows = torch.tensor([row_of[request.context] for request in batch], device=weight.device)
        inputs = _padded([request.continuation[:-1] for request in batch], model)  # (B, T - 1)
        states = last[rows, None]  # (B, 1, C)
        if inputs.shape[1]:
            copy = KVCache(model.config, len(batch), weight.device, cache_dtype, capacity=length + inputs.shape[1])
            copy.copy_from(cache, rows)
            states = torch.cat([states, model.hidden(inputs, copy)], dim=1)  # (B, T, C)
        parts = [row[: len(request.continuation)] for row, request in zip(states, batch, strict=True)]
        yield _read_scores(model, batch, torch.cat(parts))


def _read_scores(model: GPT, batch: list[Request], states: Tensor) -> Scores:
    """Score a batch from the hidden states before each token of its continuations, (N, C), concatenated."""
    targets = torch.tensor([token for request in batch for token in request.continuation], device=states.device)
    step = max(1, LOGIT_ELEMENTS // model.config.vocab_size)
    parts = [
        _log_probabilities(model.logits(part), target)
        for part, target in zip(states.split(step), targets.split(step), strict=True)
    ]
    lengths = [len(request.continuation) for request in batch]
    log_probabilities, is_first_choice = (torch.cat(column).split(lengths) for column in zip(*parts, strict=True))
    scores = {
        request: (row.sum().item(), bool(first.all()))
        for request, row, first in zip(batch, log_probabilities, is_first_choice, strict=True)
    }
    if not all(math.isfinite(log_probability) for log_probability, _ in scores.values()):
        raise NonFiniteError("the model gives NaN or infinity for a continuation; it cannot be evaluated")
    return scores


def _log_probabilities(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """For each target, (N,): its log-probability (float64, on the CPU), and whether its logit is the largest."""
    is_first_choice = logits.argmax(dim=-1) == targets
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(exact, targets, reduction="none").cpu().double(), is_first_choice.cpu()


def _padded(rows: Sequence[Tokens], model: GPT) -> Tensor:
    """The rows as one tensor on the model's device, padded on the right."""
    length, device = max(map(len, rows)), next(model.parameters()).device
    return torch.tensor([[*row, *[PADDING] * (length - len(row))] for row in rows], dtype=torch.int64, device=device)


def _batches(
    requests: Sequence[Request], length: Callable[[Request], int], batch_tokens: int
) -> Iterator[list[Request]]:
    """Batches of requests from short to long: rows times the longest is at most `batch_tokens`, or it is one row.

    A batch also ends where padding would be more than an eighth of it, unless that is little work anyway.
    """
    batch: list[Request] = []
    filled = 0
    for request in sorted(requests, key=length):
        tokens = (len(batch) + 1) * length(request)
        padding = tokens - filled - length(request)
        if batch and (tokens > batch_tokens or padding > max(tokens // 8, SMALL_PADDING)):
            yield batch
            batch, filled = [], 0
        batch.append(request)
        filled += length(request)
    if batch:
        yield batch
