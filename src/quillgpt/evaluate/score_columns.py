"""The names that scores of tasks have in metrics.jsonl: hellaswag_completion_accuracy_norm, and ..._standard_error."""

from collections.abc import Mapping
from typing import Any

from quillgpt.evaluate.score import TaskResult
from quillgpt.evaluate.tasks import TASKS

ERROR = "_standard_error"


def column(task: str, metric: str) -> str:
    """The name of a task's metric."""
    return f"{task.replace('-', '_')}_{metric}"


def columns(result: TaskResult) -> dict[str, float]:
    """All numbers of a result by their names."""
    found: dict[str, float] = {}
    for metric, score in result.scores.items():
        name = column(result.task, metric)
        found |= {name: score, name + ERROR: result.standard_errors[metric]}
    return found


def scores_told(line: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Task and accuracy of each task in a line of metrics, the normalised accuracy where it has one."""
    told = []
    for task in TASKS:
        names = [column(task, metric) for metric in ("accuracy_norm", "accuracy")]
        if name := next((name for name in names if name in line), ""):
            told.append((task, f"{line[name]:.3f} ± {line[name + ERROR]:.3f}"))
    return told
