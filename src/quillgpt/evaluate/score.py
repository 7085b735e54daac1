"""A model's score on a task: every item put to it, the share that it gets right, and how sure that share is."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from quillgpt.distributed import Ranks, total
from quillgpt.errors import DataError, NonFiniteError
from quillgpt.evaluate.held_out_loss import device_for_sums
from quillgpt.evaluate.likelihood import BATCH_TOKENS, Likelihood, likelihoods
from quillgpt.evaluate.tasks.task import Item, Task, subset
from quillgpt.model.gpt import GPT
from quillgpt.sample.generate import check_vocabulary
from quillgpt.tokenizer import Tokenizer

LARGEST_EXPONENT = 700.0  # e^709 is the largest number there is


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The scores of a model on a task, by metric, with the standard error of each.

    limit: 0 for all items. cut_contexts: candidates whose context was too long for the model. task_fingerprint: of
    the task and all its items, whatever the limit.
    """

    task: str
    scores: dict[str, float]
    standard_errors: dict[str, float]
    items: int
    limit: int
    cut_contexts: int
    task_fingerprint: str
    seconds: float


def score_task(
    task: Task,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    directory: Path,
    limit: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_tokens: int = BATCH_TOKENS,
    ranks: Ranks | None = None,
    heartbeat: Callable[[int, int], None] = lambda done, count: None,
) -> TaskResult:
    """Score the items in the directory, or a fixed subset of `limit` of them; nothing is downloaded.

    With several ranks each scores its share and all return the same. Draws no random number, and leaves the model in
    the mode it was in. `heartbeat` gets the candidates that are done and how many there are, of this rank.
    """
    started = time.perf_counter()
    ranks = ranks or Ranks()
    check_vocabulary(model, tokenizer)
    everything = task.read(directory)
    items = subset(everything, limit)
    own = range(ranks.rank, len(items), ranks.world_size)
    requests = [
        task.encode(tokenizer, candidate.context, candidate.continuation)
        for place in own
        for candidate in items[place].candidates
    ]
    try:
        found = likelihoods(
            model,
            requests,
            device=device,
            dtype=dtype,
            batch_tokens=batch_tokens,
            heartbeat=lambda done: heartbeat(done, len(requests)),
        )
    except (DataError, NonFiniteError) as error:
        raise type(error)(f"{task.name}: {error}") from None
    values = _values(task, items, own, found)
    values = total(values.to(device_for_sums(device)), ranks).cpu()
    scores, standard_errors = _summary(task.metrics, values)
    return TaskResult(
        task=task.name,
        scores=scores,
        standard_errors=standard_errors,
        items=len(items),
        limit=limit,
        cut_contexts=int(values[:, -1].sum().item()),
        task_fingerprint=task.fingerprint(everything),
        seconds=time.perf_counter() - started,
    )


def _values(task: Task, items: Sequence[Item], own: range, found: list[Likelihood]) -> Tensor:
    """A row for each item, zero where another rank has it: a number for each metric, and the contexts that were cut."""
    values = torch.zeros(len(items), len(task.metrics) + 1, dtype=torch.float64)
    rest = iter(found)
    for place in own:
        of_item = list(islice(rest, len(items[place].candidates)))
        cut = sum(likelihood.was_cut for likelihood in of_item)
        values[place] = torch.tensor([*task.measure(items[place], of_item), cut], dtype=torch.float64)
    return values


def _summary(metrics: Sequence[str], values: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard error of each metric; items are the independent units.

    Perplexity is e^-mean of the log-probabilities, and its standard error perplexity times theirs (the delta method).
    """
    scores: dict[str, float] = {}
    errors: dict[str, float] = {}
    for metric, column in zip(metrics, values.unbind(dim=1), strict=False):
        mean = column.mean().item()
        error = (column.std() / math.sqrt(len(column))).item() if len(column) > 1 else 0.0
        if metric == "perplexity":
            mean = math.exp(min(-mean, LARGEST_EXPONENT))
            error = mean * error
        scores[metric], errors[metric] = mean, error
    return scores, errors
