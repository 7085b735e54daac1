"""The narrow waist between tasks and models: how likely a model finds a continuation after a context.

Candidates of one item mostly share their context. It is read once, and its keys and values are spread over the
candidates; contexts of one length go together, so that nothing is padded on the left and no mask is needed:

    contexts    a b c    d e f               two of length 3, read as one batch
    rows        a b c|u v    a b c|w .    d e f|x y    d e f|z .      the parts behind | are read on the spread cache

Padding on the right is never seen: every position looks back only, and no logits are made for it. Logits are made
only where a token of a continuation is predicted; with GPT-2's vocabulary they are a third of the work.
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
from quillgpt.evaluate.held_out_loss import autocast, evaluation_mode
from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache

BATCH_TOKENS = 4096  # keys and values of so many tokens: 300 MB for GPT-2 124M in fp32, and twice that exists at a time
LOGIT_ELEMENTS = 1 << 23  # logits that exist at one time: 34 MB in fp32; larger parts fall out of a processor's cache
LITTLE_PADDING = 32  # tokens for which no further batch is worth its overhead
PADDING = 0  # any token: what stands on the right is not seen

Tokens = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, order=True)
class Request:
    """One candidate: score `continuation` after `context`; at least one token each."""

    context: Tokens
    continuation: Tokens

    def __post_init__(self) -> None:
        if not self.context or not self.continuation:
            raise ValueError("context and continuation need at least one token each; end of text stands for nothing")


Scores = dict[Request, tuple[float, bool]]
"""log-probability, and whether every token was the first choice"""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """What the model says of one request.

    log_probability: nats, summed over the `tokens` of the continuation. is_greedy: each of them was the model's first
    choice. was_cut: the context lost tokens at its left to fit context_length.
    """

    log_probability: float
    tokens: int
    is_greedy: bool
    was_cut: bool


def likelihoods(
    model: GPT,
    requests: Sequence[Request],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_tokens: int = BATCH_TOKENS,
    heartbeat: Callable[[int], None] = lambda done: None,
) -> list[Likelihood]:
    """The likelihood of each request, in their order; equal requests are computed once.

    What is computed together depends on the set of requests and not on their order. `batch_tokens` bounds the tokens
    that are read, and those whose keys and values are held, at a time; one sequence is always possible. `heartbeat`
    gets the number of requests that are finished. No random numbers; the model's mode stays as it was.
    """
    fitted = [fitted_request(request, model.config.context_length) for request in requests]
    distinct = sorted(set(fitted))
    scores: Scores = {}
    with evaluation_mode(model), torch.no_grad(), autocast(device, dtype):
        for batch in _scored(model, distinct, _Precision(device, dtype), batch_tokens):
            scores |= batch
            heartbeat(len(scores) * len(requests) // len(distinct))
    return [
        Likelihood(
            log_probability=scores[fit][0],
            tokens=len(fit.continuation),
            is_greedy=scores[fit][1],
            was_cut=len(fit.context) < len(request.context),
        )
        for request, fit in zip(requests, fitted, strict=True)
    ]


def fitted_request(request: Request, context_length: int) -> Request:
    """The request with as much of its context, from the right, as the model can see.

    The last token of a continuation is predicted and not read, so context and continuation may have one token more
    than context_length together. A continuation that leaves no room for one token of context is a `DataError`.
    """
    length = len(request.continuation)
    if length > context_length:
        raise DataError(
            f"a continuation of {length:,} tokens cannot be scored: this model sees context_length = {context_length:,}"
            "; use a model with a longer context"
        )
    return dataclasses.replace(request, context=request.context[-(context_length + 1 - length) :])


@dataclass(frozen=True)
class _Precision:
    """Where and in what precision is computed."""

    device: str
    dtype: torch.dtype


def _scored(model: GPT, requests: list[Request], precision: _Precision, batch_tokens: int) -> Iterator[Scores]:
    """Log-probability and greediness of sorted requests without repetitions, a batch at a time."""
    together = {context: list(group) for context, group in groupby(requests, key=lambda request: request.context)}
    alone = [group[0] for group in together.values() if len(group) == 1]
    yield from _scored_alone(model, alone, precision, batch_tokens)
    shared = sorted((context for context, group in together.items() if len(group) > 1), key=len)
    for length, contexts in groupby(shared, key=len):
        for some in _pieces(list(contexts), max(1, batch_tokens // length)):
            rows = [request for context in some for request in together[context]]
            yield from _scored_shared(model, some, rows, precision, batch_tokens)


def _scored_alone(model: GPT, requests: list[Request], precision: _Precision, batch_tokens: int) -> Iterator[Scores]:
    """Requests that share no context: whole sequences, those of similar length together."""

    def read(request: Request) -> Tokens:
        return request.context + request.continuation[:-1]

    ordered = sorted(requests, key=lambda request: len(read(request)))
    for batch in _bounded(ordered, lambda request: len(read(request)), batch_tokens):
        hidden = model.hidden(_padded([read(request) for request in batch], precision.device))  # (B, T, C)
        starts = [len(request.context) - 1 for request in batch]  # the last of the context predicts the first
        states = [
            row[start : start + len(request.continuation)]
            for row, start, request in zip(hidden, starts, batch, strict=True)
        ]
        yield _read_off(model, batch, torch.cat(states))


def _scored_shared(
    model: GPT, contexts: list[Tokens], requests: list[Request], precision: _Precision, batch_tokens: int
) -> Iterator[Scores]:
    """Requests after contexts of one length, which are read once."""
    length = len(contexts[0])
    row_of = {context: row for row, context in enumerate(contexts)}
    read = _new_cache(model, len(contexts), length, precision)
    last = model.hidden(torch.tensor(contexts, device=precision.device), read)[:, -1]  # (contexts, C)
    ordered = sorted(requests, key=lambda request: len(request.continuation))
    for batch in _bounded(ordered, lambda request: length + len(request.continuation) - 1, batch_tokens):
        rows = torch.tensor([row_of[request.context] for request in batch], device=precision.device)
        inputs = _padded([request.continuation[:-1] for request in batch], precision.device)  # (B, T - 1)
        states = last[rows, None]  # (B, 1, C)
        if inputs.shape[1]:
            spread = _spread(model, read, rows, inputs.shape[1], precision)
            states = torch.cat([states, model.hidden(inputs, spread)], dim=1)  # (B, T, C)
        states = [row[: len(request.continuation)] for row, request in zip(states, batch, strict=True)]
        yield _read_off(model, batch, torch.cat(states))


def _read_off(model: GPT, batch: list[Request], states: Tensor) -> Scores:
    """The scores of a batch from the residual stream before each token of its continuations (N, C), end to end."""
    targets = torch.tensor([token for request in batch for token in request.continuation], device=states.device)
    step = max(1, LOGIT_ELEMENTS // model.config.vocab_size)
    parts = [
        _log_probabilities(model.logits(some), target)
        for some, target in zip(states.split(step), targets.split(step), strict=True)
    ]
    lengths = [len(request.continuation) for request in batch]
    log_probabilities = torch.cat([part[0] for part in parts]).split(lengths)
    is_first = torch.cat([part[1] for part in parts]).split(lengths)
    scores = {
        request: (row.sum().item(), bool(first.all()))
        for request, row, first in zip(batch, log_probabilities, is_first, strict=True)
    }
    if not all(math.isfinite(log_probability) for log_probability, _ in scores.values()):
        raise NonFiniteError("the model gives NaN or infinity for a continuation; it cannot be evaluated")
    return scores


def _log_probabilities(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of each target (N,): its log-probability (float64, on the CPU), and whether no other token has a higher one."""
    is_first = logits.argmax(dim=-1) == targets
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(exact, targets, reduction="none").cpu().double(), is_first.cpu()


def _new_cache(model: GPT, sequences: int, room: int, precision: _Precision) -> KVCache:
    """A cache with room for what is needed and not for the whole context."""
    weights = next(model.parameters()).dtype
    dtype = weights if precision.dtype == torch.float32 else precision.dtype
    return KVCache(dataclasses.replace(model.config, context_length=room), sequences, precision.device, dtype)


def _spread(model: GPT, read: KVCache, rows: Tensor, new: int, precision: _Precision) -> KVCache:
    """A cache that holds for each row what `read` holds for that context, with room for `new` tokens more."""
    spread = _new_cache(model, len(rows), read.length + new, precision)
    spread.take(read, rows)
    return spread


def _padded(rows: Sequence[Tokens], device: str) -> Tensor:
    """The rows as one tensor, filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[PADDING] * (longest - len(row))] for row in rows], dtype=torch.int64, device=device)


def _bounded(
    ordered: Sequence[Request], length: Callable[[Request], int], batch_tokens: int
) -> Iterator[list[Request]]:
    """Batches of requests from short to long: rows times the longest is at most `batch_tokens`, or it is one row.

    A batch also ends where padding would be more than an eighth of it, unless that is little work anyway.
    """
    batch: list[Request] = []
    filled = 0
    for request in ordered:
        tokens = (len(batch) + 1) * length(request)
        padding = tokens - filled - length(request)
        if batch and (tokens > batch_tokens or padding > max(tokens // 8, LITTLE_PADDING)):
            yield batch
            batch, filled = [], 0
        batch.append(request)
        filled += length(request)
    if batch:
        yield batch


def _pieces(contexts: list[Tokens], size: int) -> Iterator[list[Tokens]]:
    for start in range(0, len(contexts), size):
        yield contexts[start : start + size]
