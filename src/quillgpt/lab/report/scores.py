"""Task scores of a run, from its metrics and from evaluations/, and the published scores of GPT-2 and GPT-3."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from quillgpt.evaluate.tasks import TASKS
from quillgpt.lab.report.series import as_number
from quillgpt.lab.report.text import one_line
from quillgpt.lab.run_record import RunRecord

ERROR = "_standard_error"
METRICS = {
    "accuracy_norm": "accuracy, by length",
    "accuracy": "accuracy",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "loss": "nats per token",
}
TITLES = {name: task.title for name, task in TASKS.items()} | {"loss": "Loss"}
LONGEST_NAME = 60
CHANCE = {"hellaswag": 0.25}  # by the beginning of the task's name


class PublishedScore(NamedTuple):
    """A score that is published: of which model, with how many parameters, and where."""

    name: str
    parameters: int
    value: float
    source: str


GPT2 = {
    "gpt2": ("GPT-2 124M", 124_000_000),
    "gpt2-medium": ("GPT-2 350M", 350_000_000),
    "gpt2-large": ("GPT-2 774M", 774_000_000),
    "gpt2-xl": ("GPT-2 1558M", 1_558_000_000),
}
# GPT-2's scores are with the tasks. Here are those of the two sizes between, from build-nanogpt's play.ipynb, and
# GPT-3's [Brown 2020, Table H.1, zero-shot]. GPT-3 was scored by the mean log-likelihood per token of an ending
# [Brown 2020, 2.4], as the style `completion` does.
_GPT3 = "Brown et al. 2020, Table H.1"
MORE_PUBLISHED = {
    ("hellaswag-completion", "accuracy_norm"): (
        PublishedScore("GPT-2 350M", 350_000_000, 0.375224, "build-nanogpt"),
        PublishedScore("GPT-2 774M", 774_000_000, 0.431986, "build-nanogpt"),
        PublishedScore("GPT-3 125M", 125_000_000, 0.337, _GPT3),
        PublishedScore("GPT-3 350M", 350_000_000, 0.436, _GPT3),
        PublishedScore("GPT-3 760M", 760_000_000, 0.510, _GPT3),
        PublishedScore("GPT-3 1.3B", 1_300_000_000, 0.547, _GPT3),
    ),
}


@dataclass(frozen=True, kw_only=True)
class ScorePoint:
    """A score at a step; NaN for an unknown number of tokens or an unknown standard error, 0 for unknown items."""

    step: int
    tokens: float
    value: float
    error: float
    items: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task over the steps of a run."""

    task: str
    metric: str
    split: str
    points: list[ScorePoint]

    @property
    def name(self) -> str:
        """Task, split and metric as a title."""
        task = TITLES.get(self.task, self.task) + (f" ({self.split})" if self.split else "")
        return f"{task}: {self.metric_name}"

    @property
    def metric_name(self) -> str:
        """The metric in words."""
        return METRICS.get(self.metric, self.metric.replace("_", " "))


def scores_of(record: RunRecord) -> list[Score]:
    """Every score of a run; if a step has two, the one with the smaller standard error."""
    found: dict[tuple[str, str, str], dict[int, ScorePoint]] = {}
    for key, point in [*_in_evaluations(record), *_in_metrics(record)]:
        points = found.setdefault(key, {})
        known = points.get(point.step)
        if known is None or not known.error <= point.error:
            points[point.step] = point
    return [
        Score(task=task, metric=metric, split=split, points=[points[step] for step in sorted(points)])
        for (task, metric, split), points in sorted(found.items())
    ]


def published_for(task: str, metric: str, parameters: int) -> list[PublishedScore]:
    """The published scores of the smallest model of each family and of the one nearest in size."""
    families: dict[str, list[PublishedScore]] = {}
    for entry in all_published(task, metric):
        families.setdefault(entry.name.split()[0], []).append(entry)
    chosen = []
    for members in families.values():
        nearest = min(members, key=lambda entry: abs(math.log(entry.parameters / max(1, parameters))))
        chosen += [members[0]] if nearest is members[0] else [members[0], nearest]
    return chosen


def all_published(task: str, metric: str) -> list[PublishedScore]:
    """Every published score of this task and metric, by family and size."""
    from quillgpt.evaluate.tasks import TASKS

    found = list(MORE_PUBLISHED.get((task, metric), ()))
    for model, scores in (TASKS[task].published if task in TASKS else {}).items():
        if model in GPT2 and metric in scores:
            found.append(PublishedScore(*GPT2[model], *scores[metric]))
    return sorted(found, key=lambda entry: (entry.name.split()[0], entry.parameters))


def chance_of(task: str) -> float | None:
    """The score of guessing, if it is known."""
    return next((share for name, share in CHANCE.items() if task.startswith(name)), None)


Found = tuple[tuple[str, str, str], ScorePoint]


def _in_metrics(record: RunRecord) -> Iterator[Found]:
    """The numbers of metrics.jsonl that have a standard error, except the validation loss."""
    for line in record.lines:
        for name in [name for name in line if name.endswith(ERROR) and name != f"validation{ERROR}"]:
            key = name.removesuffix(ERROR)
            value, step = as_number(line.get(key)), as_number(line.get("step"))
            if value is not None and step is not None:
                task, metric = split_name(key)
                yield (task, metric, ""), _point(step, line.get("tokens"), value, line[name], 0)


def _in_evaluations(record: RunRecord) -> Iterator[Found]:
    tokens = {line.get("step"): line.get("tokens") for line in record.lines if as_number(line.get("step")) is not None}
    for entry in record.evaluations:
        model, task, values = entry.get("model"), entry.get("task"), entry.get("scores")
        if not (isinstance(model, Mapping) and isinstance(task, Mapping) and isinstance(values, Mapping)):
            continue
        step = as_number(model.get("step"))
        if step is None:
            continue
        errors, data, split = entry.get("standard_errors"), entry.get("data"), task.get("split")
        text = data.get("name") if isinstance(data, Mapping) and task.get("name") == "loss" else None
        name = one_line(str(task.get("name")), longest=LONGEST_NAME)
        split = one_line(", ".join(str(word) for word in (text, split) if word), longest=LONGEST_NAME)
        for metric, value in values.items():
            known = as_number(value)
            if known is not None:
                error = errors.get(metric) if isinstance(errors, Mapping) else None
                seen = model.get("tokens") or tokens.get(step)
                key = (name, one_line(str(metric), longest=LONGEST_NAME), split)
                yield key, _point(step, seen, known, error, entry.get("items"))


def split_name(key: str) -> tuple[str, str]:
    """The task and the metric of a name in metrics.jsonl such as hellaswag_completion_accuracy_norm."""
    key = one_line(key, longest=LONGEST_NAME)
    for metric in METRICS:
        if re.search(rf"._{metric}$", key):
            return key[: -len(metric) - 1].replace("_", "-"), metric
    return key.replace("_", "-"), "score"


def _point(step: float, tokens: object, value: float, error: object, items: object) -> ScorePoint:
    known_tokens, known_error = as_number(tokens), as_number(error)
    return ScorePoint(
        step=int(step),
        tokens=math.nan if known_tokens is None else known_tokens,
        value=value,
        error=math.nan if known_error is None else known_error,
        items=int(as_number(items) or 0),
    )
