"""Score a model on a task, and keep each evaluation as one JSON file: which model, task, data and code, which numbers.

    runs/NAME/evaluations/step-000400-hellaswag-completion-200.json     of a run
    evaluations/gpt2-loss-val.json                                      of another model

A new evaluation of the same model, task and data replaces its file; any other evaluation gets a file of its own.
"""

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quillgpt import files
from quillgpt.distributed import Ranks, all_reduce_sum, device_for_sums
from quillgpt.errors import DataError, NonFiniteError
from quillgpt.evaluate.likelihood import BATCH_TOKENS, Likelihood, likelihoods
from quillgpt.evaluate.tasks import TASKS
from quillgpt.evaluate.tasks.task import Item, Task, subset
from quillgpt.model.gpt import GPT
from quillgpt.sample.engine import check_vocabulary
from quillgpt.tokenizer import Tokenizer

LARGEST_EXPONENT = 700.0  # e^709 is the largest float
ERROR = "_standard_error"  # suffix of a standard error in metrics.jsonl


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The model. fingerprint: of its weights. step and tokens: how long its run had trained it."""

    name: str
    fingerprint: str
    parameters: int
    step: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """The task. limit: the most items or tokens, as requested; 0: all. split: of the data."""

    name: str
    fingerprint: str
    limit: int
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The data: its directory or file, and what identifies its content."""

    name: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class RuntimeRecord:
    """What the numbers were computed with."""

    device: str
    dtype: str
    threads: int
    torch: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of a model on one task.

    items: questions, or scored tokens; 0 if lm-evaluation-harness does not say. bytes: UTF-8 size of the scored text; 0
    for questions. published: model -> score -> value that others report. cut_contexts: candidates whose context was too
    long for the model.
    """

    task: TaskRecord
    data: DataRecord
    scores: Mapping[str, float]
    standard_errors: Mapping[str, float]
    items: int
    seconds: float = 0.0
    bytes: int = 0
    cut_contexts: int = 0
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def score_task(
    task: Task,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    directory: Path,
    limit: int = 0,
    dtype: torch.dtype = torch.float32,
    batch_tokens: int = BATCH_TOKENS,
    ranks: Ranks | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Score the items in the directory, or a fixed subset of `limit` of them; nothing is downloaded.

    progress: gets the number of candidates done, and of all, on this rank. With several ranks each scores its share and
    all return the same. No random number is drawn, and the model keeps its mode.
    """
    started = time.perf_counter()
    ranks = ranks or Ranks()
    check_vocabulary(model, tokenizer)
    all_items = task.read(directory)
    items = subset(all_items, limit)
    own = range(ranks.rank, len(items), ranks.world_size)
    requests = [task.encode(tokenizer, one.context, one.continuation) for i in own for one in items[i].candidates]
    try:
        found = likelihoods(
            model, requests, dtype=dtype, batch_tokens=batch_tokens, progress=lambda done: progress(done, len(requests))
        )
    except (DataError, NonFiniteError) as error:
        raise type(error)(f"{task.name}: {error}") from None
    device = device_for_sums(str(next(model.parameters()).device))
    values = all_reduce_sum(_values(task, items, own, found).to(device), ranks).cpu()
    scores, standard_errors = _summary(task.metrics, values)
    fingerprint = task.fingerprint(all_items)
    return Result(
        task=TaskRecord(name=task.name, fingerprint=fingerprint, limit=limit),
        data=DataRecord(name=str(directory), fingerprint=fingerprint),
        scores=scores,
        standard_errors=standard_errors,
        items=len(items),
        seconds=time.perf_counter() - started,
        cut_contexts=int(values[:, -1].sum().item()),
        published={} if limit else task.published_scores,
    )


def _values(task: Task, items: Sequence[Item], own: range, found: list[Likelihood]) -> Tensor:
    """For each item its metrics and the number of its cut contexts; zeros for the items of other ranks."""
    values = torch.zeros(len(items), len(task.metrics) + 1, dtype=torch.float64)
    rest = iter(found)
    for i in own:
        of_item = list(islice(rest, len(items[i].candidates)))
        cut = sum(likelihood.was_cut for likelihood in of_item)
        values[i] = torch.tensor([*task.measure(items[i], of_item), cut], dtype=torch.float64)
    return values


def _summary(metrics: Sequence[str], values: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard error of each metric over the items, which are the independent units.

    Perplexity is e to minus the mean log-probability; its standard error is by the delta method.
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


def metric_column(task: str, metric: str) -> str:
    """Return a metric's name in metrics.jsonl, such as hellaswag_completion_accuracy_norm."""
    return f"{task.replace('-', '_')}_{metric}"


def metric_columns(result: Result) -> dict[str, float]:
    """Return the scores and standard errors of a result under their names in metrics.jsonl."""
    columns: dict[str, float] = {}
    for metric, score in result.scores.items():
        name = metric_column(result.task.name, metric)
        columns |= {name: score, name + ERROR: result.standard_errors[metric]}
    return columns


def accuracy_texts(line: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return task and accuracy of each task in a line of metrics.jsonl; the normalized accuracy if there is one."""
    texts = []
    for task in TASKS:
        names = [metric_column(task, metric) for metric in ("accuracy_norm", "accuracy")]
        if name := next((name for name in names if name in line), ""):
            texts.append((task, f"{line[name]:.3f} ± {line[name + ERROR]:.3f}"))
    return texts


@functools.cache
def code_fingerprint() -> str:
    """Return the SHA-256 (hex) over the names and contents of the package's source files."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for name in sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py")):
        digest.update(f"{name}\n".encode() + bytes.fromhex(files.file_sha256(root / name)))
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A result with the model, the runtime and the code that it was computed with."""

    model: ModelRecord
    computed: RuntimeRecord
    result: Result
    code: str = field(default_factory=code_fingerprint)

    @property
    def published(self) -> Mapping[str, float]:
        """Values that others report for this model."""
        return self.result.published.get(self.model.name, {})

    def to_json(self) -> dict[str, Any]:
        """Return the content of its file."""
        parts = dataclasses.asdict(self)
        result = parts.pop("result") | {"published": dict(self.published)}
        return {"model": parts.pop("model"), **result, **parts}

    @property
    def identity(self) -> tuple[str, ...]:
        """Model, task and data; equal for evaluations that replace each other."""
        task, data = self.result.task, self.result.data
        return (self.model.fingerprint, task.fingerprint, str(task.limit), task.split or "", data.fingerprint)

    @property
    def name(self) -> str:
        """The task with its split and limit: hellaswag-completion-200, loss-val."""
        task = self.result.task
        return "-".join(str(part) for part in (task.name, task.split, task.limit) if part)


def write_evaluation(evaluation: Evaluation, folder: Path, model_name: str) -> Path:
    """Write the JSON to MODEL-TASK.json and return the path; if that file is of another identity, to another name.

    A score that is not finite is a `NonFiniteError`: JSON cannot hold it, and the weights are not finite either.
    """
    for score, value in evaluation.result.scores.items():
        if not math.isfinite(value):
            model = evaluation.model.name
            raise NonFiniteError(f"{model}: {score} of {evaluation.name} is {value:.4g}; its weights are not usable")
    path = folder / f"{model_name}-{evaluation.name}.json"
    if _stored_identity(path) not in (None, evaluation.identity):
        path = path.with_stem(f"{path.stem}-{hashlib.sha256(repr(evaluation.identity).encode()).hexdigest()[:8]}")
    files.write_json(path, evaluation.to_json())
    return path


def _stored_identity(path: Path) -> tuple[str, ...] | None:
    """The identity of the evaluation in a file; None if there is no file or it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        task = content["task"]
        parts = (task["fingerprint"], str(task["limit"]), task["split"] or "", content["data"]["fingerprint"])
        return (content["model"]["fingerprint"], *parts)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
