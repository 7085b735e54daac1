"""The record of one evaluation: one JSON file that says which model, task, data and code gave which numbers.

    runs/NAME/evaluations/step-000400-hellaswag-completion-200.json     of a run
    evaluations/gpt2-loss-val.json                                      of another model

The same model, task and data are computed anew and replace their file; others never do.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from quillgpt import files
from quillgpt.errors import NonFiniteError
from quillgpt.evaluate.score import TaskResult
from quillgpt.evaluate.tasks import Task

STDERR = "_stderr"  # as the harness names a standard error


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The model: `fingerprint` is that of its weights, `step` and `tokens` are how far a run of ours was."""

    name: str
    fingerprint: str
    parameters: int
    step: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """The task: `limit` is how many items or tokens were asked for at most, 0 all; `split` is that of the data."""

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
class Computed:
    """What it was computed with."""

    device: str
    dtype: str
    threads: int
    torch: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model on one task.

    items: questions of a task, or scored tokens, 0 where the harness does not tell; `bytes` is the UTF-8 size of the
    text that these stand for, 0 for questions. published: numbers of others for the same scores, by the score's name.
    `code` is `code_fingerprint()`.
    """

    model: ModelRecord
    task: TaskRecord
    data: DataRecord
    code: str
    computed: Computed
    scores: Mapping[str, float]
    standard_errors: Mapping[str, float]
    items: int
    seconds: float
    bytes: int = 0
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The evaluation as plain values, its code's fingerprint included."""
        return dataclasses.asdict(self)

    @property
    def subject(self) -> tuple[str, ...]:
        """What the numbers are of; equal for evaluations that replace each other."""
        task = self.task
        return (self.model.fingerprint, task.fingerprint, str(task.limit), task.split or "", self.data.fingerprint)

    @property
    def name(self) -> str:
        """The task with what tells its evaluations of one model apart: hellaswag-completion-200, loss-val."""
        limit = str(self.task.limit) if self.task.limit else ""
        return "-".join(part for part in (self.task.name, self.task.split, limit) if part)


def task_evaluation(
    task: Task, result: TaskResult, directory: Path, model: ModelRecord, computed: Computed
) -> Evaluation:
    """The record of a task's result."""
    published = {metric: score for metric, (score, _) in task.published.get(model.name, {}).items()}
    return Evaluation(
        model=model,
        task=TaskRecord(name=task.name, fingerprint=result.task_fingerprint, limit=result.limit),
        data=DataRecord(name=str(directory), fingerprint=result.task_fingerprint),
        code=code_fingerprint(),
        computed=computed,
        scores=result.scores,
        standard_errors=result.standard_errors,
        items=result.items,
        seconds=result.seconds,
        published={} if result.limit else published,
    )


def harness_evaluation(
    name: str, numbers: Mapping[str, float], limit: int, directory: Path, model: ModelRecord, computed: Computed
) -> Evaluation:
    """The record of a task of lm-evaluation-harness, whose numbers are METRIC and METRIC_stderr; items are not told."""
    identity = f"lm-evaluation-harness {version('lm-eval')} {name}"
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    scores = {metric: value for metric, value in numbers.items() if not metric.endswith(STDERR)}
    return Evaluation(
        model=model,
        task=TaskRecord(name=f"harness-{name}", fingerprint=fingerprint, limit=limit),
        data=DataRecord(name=str(directory), fingerprint=fingerprint),
        code=code_fingerprint(),
        computed=computed,
        scores=scores,
        standard_errors={metric: numbers[metric + STDERR] for metric in scores if metric + STDERR in numbers},
        items=0,
        seconds=0.0,
    )


def write_evaluation(evaluation: Evaluation, folder: Path, model_name: str) -> Path:
    """Write the JSON and return where it is: MODEL-TASK.json, or where that is of another subject, a name of its own.

    A score that is not a number is a `NonFiniteError`: JSON has none, and the model's weights are not numbers either.
    """
    for score, value in evaluation.scores.items():
        if not math.isfinite(value):
            model = evaluation.model.name
            raise NonFiniteError(f"{model}: {score} of {evaluation.name} is {value:.4g}; its weights are not usable")
    path = folder / f"{model_name}-{evaluation.name}.json"
    if _subject_in(path) not in (None, evaluation.subject):
        path = path.with_stem(f"{path.stem}-{hashlib.sha256(repr(evaluation.subject).encode()).hexdigest()[:8]}")
    files.write_json(path, evaluation.to_json())
    return path


def _subject_in(path: Path) -> tuple[str, ...] | None:
    """Whose numbers a file holds; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        task = content["task"]
        parts = (task["fingerprint"], str(task["limit"]), task["split"] or "", content["data"]["fingerprint"])
        return (content["model"]["fingerprint"], *parts)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@functools.cache
def code_fingerprint() -> str:
    """SHA-256 (hex) over the package's own source files, by name and content."""
    digest = hashlib.sha256()
    for name, file in sorted(_sources(resources.files("quillgpt"), ""), key=lambda entry: entry[0]):
        digest.update(f"{name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _sources(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name != "__pycache__":
            found += _sources(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            found.append((prefix + entry.name, entry))
    return found
