"""The side of the harness adapter that speaks to lm-evaluation-harness [Gao 2021], an optional package.

It is asked for its own definitions of the tasks. Where a directory holds the data of one, a definition is written that
includes the library's and changes nothing but the place of the data, so that it runs without a network.
"""

import contextlib
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from quillgpt import files
from quillgpt.errors import ConfigError, nearest
from quillgpt.evaluate.likelihood import Likelihood
from quillgpt.evaluate.tasks import TASKS
from quillgpt.evaluate.tasks.task import Task, subset

FOLDERS = {
    "hellaswag": "hellaswag",
    "lambada_openai": "lambada",
    "piqa": "piqa",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "winogrande": "winogrande",
}
"""where the library keeps the definition of a task that we have the data format of"""

OURS: Mapping[str, Task] = {task.harness_name: task for task in TASKS.values() if task.harness_name}

BOOTSTRAP = 1000  # resamplings for the standard errors that have no formula


class Answers(Protocol):
    """What is asked of a model; `HarnessModel` is one."""

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """How likely each continuation is after its context."""
        ...

    def texts(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each text."""
        ...

    def answers(self, prompts: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """A continuation of each prompt."""
        ...


def check_installed() -> None:
    """A `ConfigError` that says how to get the library where it is missing."""
    if find_spec("lm_eval") is None:
        raise ConfigError("--harness needs lm_eval, which is missing: pip install 'quillgpt[harness]'")


def has_data(name: str, directory: Path) -> bool:
    """Whether the directory holds the data of the harness's task of that name."""
    task = OURS.get(name)
    return task is not None and any(
        (directory / path).exists() for path in (*task.paths, task.archive or task.paths[0])
    )


def all_tasks(names: Sequence[str]) -> Any:
    """Everything the library knows; a name that it does not know is a `ConfigError`."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for name in names:
        if name not in manager.task_index:
            raise ConfigError(f"harness = {name!r} does not exist{nearest(name, manager.task_index)}")
    return manager


def tasks_on(data: Path, names: Sequence[str], folder: Path, *, limit: int) -> Any:
    """The library's definitions of these tasks with the data of a directory; what that needs is written to `folder`."""
    import lm_eval.tasks

    definitions = Path(lm_eval.tasks.__file__).parent
    kept = lm_eval.tasks.TaskManager(
        include_path=[definitions / FOLDERS[name] for name in names], include_defaults=False
    )
    for name in names:
        lines = [json.dumps(record.values) for record in subset(list(OURS[name].read_records(data)), limit)]
        files.write_text(folder / f"{name}.jsonl", "\n".join(lines) + "\n")
        place = str(folder / f"{name}.jsonl")
        definition = {
            "include": str(kept.task_index[name].yaml_path),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {"validation": place, "test": place},
                "cache_dir": str(folder / "cache"),
            },
            "training_split": None,
        }
        files.write_json(folder / f"{name}.yaml", definition)  # JSON is YAML
    return lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(answers: Answers, names: Sequence[str], tasks: Any, *, limit: int) -> dict[str, dict[str, float]]:
    """Task -> metric -> value, as the library computes them from the model's answers. No random state is changed."""
    from lm_eval import simple_evaluate

    # what is asked for is the result, so the library's progress goes elsewhere
    with contextlib.redirect_stdout(sys.stderr), kept_random_states():
        found = simple_evaluate(
            model=_language_model(answers),
            tasks=list(names),
            task_manager=tasks,
            limit=limit or None,
            bootstrap_iters=BOOTSTRAP,
            log_samples=False,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    return {task: _numbers(metrics) for task, metrics in found["results"].items()}


@contextlib.contextmanager
def kept_random_states() -> Iterator[None]:
    """Put the random states of Python, NumPy and torch back to what they were before the block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """{"acc,none": 0.3, "acc_stderr,none": 0.1, "alias": "piqa"} to {"acc": 0.3, "acc_stderr": 0.1}."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and "," in name
    }


def _language_model(answers: Answers) -> Any:
    """The answers behind the library's class; a class in a function, because its base is an optional package."""
    from lm_eval.api.model import LM

    class QuillModel(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            found = answers.continuations([request.args for request in requests])
            return [(likelihood.log_probability, likelihood.is_greedy) for likelihood in found]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return answers.texts([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            return answers.answers([request.args for request in requests])

    return QuillModel()
