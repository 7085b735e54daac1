"""lm-evaluation-harness [Gao 2021], an optional package, with our models: its thousands of tasks.

`HarnessModel` answers the three questions that the harness asks of a model. The definitions of the tasks are its own.
If a directory has the data of one, a definition is written that includes the harness's and changes only where the data
is, so that it runs without a network.
"""

import contextlib
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quillgpt import files
from quillgpt.errors import ConfigError, nearest
from quillgpt.evaluate.likelihood import BATCH_TOKENS, Likelihood, Request, likelihoods
from quillgpt.evaluate.results import DataRecord, Result, TaskRecord
from quillgpt.evaluate.tasks import TASKS
from quillgpt.evaluate.tasks.task import Task, encode_joined, subset
from quillgpt.model.gpt import GPT
from quillgpt.model.precision import autocast
from quillgpt.sample.engine import check_vocabulary, stream
from quillgpt.sample.settings import SamplingSettings
from quillgpt.tokenizer import Tokenizer

LOCAL_TASKS: Mapping[str, Task] = {task.harness_name: task for task in TASKS.values() if task.harness_name}
BOOTSTRAP_SAMPLES = 1000  # for the standard errors that have no formula
NEW_TOKENS = 256  # if a task does not give a number
ERROR = "_stderr"  # suffix of a standard error


@dataclass(frozen=True, kw_only=True)
class HarnessModel:
    """A model that answers the harness: likelihoods of continuations, likelihoods of texts, greedy generation."""

    model: GPT
    tokenizer: Tokenizer
    dtype: torch.dtype = torch.float32
    batch_tokens: int = BATCH_TOKENS

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Return the likelihood of each (context, continuation)."""
        return self._likelihoods([encode_joined(self.tokenizer, *pair) for pair in pairs])

    def texts(self, texts: Sequence[str]) -> list[float]:
        """Return the log-probability of each text, in nats, from its first token to its last."""
        length = self.model.config.context_length
        windows = [rolling_requests(self.tokenizer.encode(text), self.tokenizer.end_of_text, length) for text in texts]
        rest = iter(self._likelihoods([request for of_text in windows for request in of_text]))
        return [sum(next(rest).log_probability for _ in of_text) for of_text in windows]

    def answer(self, prompt: str, settings: Mapping[str, Any]) -> str:
        """Return the greedy continuation of a prompt; `settings` are the harness's `generation_kwargs`."""
        if settings.get("do_sample") and settings.get("temperature", 1.0) != 0:
            raise ConfigError("harness: the task asks for sampled text; only greedy generation is possible")
        until = settings.get("until") or []
        greedy = SamplingSettings(
            temperature=0,
            max_new_tokens=int(settings.get("max_gen_toks", NEW_TOKENS)),
            stop=tuple(string for string in ([until] if isinstance(until, str) else until) if string),
        )
        length = self.model.config.context_length
        room = max(length - greedy.max_new_tokens, length // 2, 1)  # for the end of the prompt
        tokens = (self.tokenizer.encode(prompt) or [self.tokenizer.end_of_text])[-room:]
        with autocast(str(next(self.model.parameters()).device), self.dtype):
            return "".join(stream(self.model, self.tokenizer, tokens, greedy))

    def _likelihoods(self, requests: list[Request]) -> list[Likelihood]:
        return likelihoods(self.model, requests, dtype=self.dtype, batch_tokens=self.batch_tokens)


def rolling_requests(tokens: Sequence[int], end_of_text: int, context_length: int) -> list[Request]:
    """Return requests that predict each token of a text of any length once, the first after an end of text.

    Windows of context_length follow each other; the last one starts earlier, so that its context is full:

        context_length 4, tokens a b c d e f      context |  a b c d      d c d | e f       (| is end of text)
    """
    known = [end_of_text, *tokens]  # known[i] is the token before tokens[i]
    requests = []
    for start in range(0, len(tokens), context_length):
        end = min(start + context_length, len(tokens))
        context = known[max(0, end - context_length) : start + 1]
        requests.append(Request(context=tuple(context), continuation=tuple(tokens[start:end])))
    return requests


def check_installed() -> None:
    """Raise a `ConfigError` that says how to install the harness if it is missing."""
    if find_spec("lm_eval") is None:
        raise ConfigError("--harness needs lm_eval, which is missing: pip install 'quillgpt[harness]'")


def has_data(name: str, directory: Path) -> bool:
    """Whether the directory has the data of the harness's task of that name."""
    task = LOCAL_TASKS.get(name)
    return task is not None and any((directory / path).exists() for path in (*task.paths, task.file_name))


def all_tasks(names: Sequence[str]) -> Any:
    """Return the harness's `TaskManager` of all its tasks; a name that it does not know is a `ConfigError`."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for name in names:
        if name not in manager.task_index:
            raise ConfigError(f"invalid harness: {name!r}{nearest(name, manager.task_index)}")
    return manager


def local_tasks(directory: Path, names: Sequence[str], folder: Path, *, limit: int) -> Any:
    """Return a `TaskManager` of tasks that read the data in the directory; their files are written to `folder`."""
    import lm_eval.tasks

    definitions = Path(lm_eval.tasks.__file__).parent
    folders: list[Path | str] = [
        definitions / name.partition("_")[0] for name in names
    ]  # the definition of arc_easy is in arc/
    included = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    for name in names:
        path = folder / f"{name}.jsonl"
        records = subset(list(LOCAL_TASKS[name].read_records(directory)), limit)
        files.write_text(path, "".join(json.dumps(record.values) + "\n" for record in records))
        data = {"data_files": {"validation": str(path), "test": str(path)}, "cache_dir": str(folder / "cache")}
        definition = {
            "include": str(included.task_index[name].yaml_path),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": data,
            "training_split": None,
        }
        files.write_json(folder / f"{name}.yaml", definition)  # JSON is YAML
    return lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(model: HarnessModel, names: Sequence[str], tasks: Any, *, limit: int) -> dict[str, dict[str, float]]:
    """Return task -> metric -> value, as the harness computes them. No random state is changed."""
    from lm_eval import simple_evaluate

    # Standard output is for the results, so the harness's progress goes to standard error.
    with contextlib.redirect_stdout(sys.stderr), kept_random_states():
        found = simple_evaluate(
            model=_language_model(model),
            tasks=list(names),
            task_manager=tasks,
            limit=limit or None,
            bootstrap_iters=BOOTSTRAP_SAMPLES,
            log_samples=False,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    return {task: _numbers(metrics) for task, metrics in found["results"].items()}


@contextlib.contextmanager
def kept_random_states() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch after the block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """{"acc,none": 0.3, "acc_stderr,none": 0.1, "alias": "piqa"} to {"acc": 0.3, "acc_stderr": 0.1}."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float) and "," in name}
    return {name.removesuffix(",none"): float(value) for name, value in numbers.items()}


def _language_model(model: HarnessModel) -> Any:
    """The model as the harness's class, which is defined here because its base is in an optional package."""
    from lm_eval.api.model import LM

    class QuillModel(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            found = model.continuations([request.args for request in requests])
            return [(likelihood.log_probability, likelihood.is_greedy) for likelihood in found]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return model.texts([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [model.answer(*request.args) for request in requests]

    return QuillModel()


def score_harness(
    names: Sequence[str],
    model: GPT,
    tokenizer: Tokenizer,
    *,
    directory: Path,
    limit: int = 0,
    dtype: torch.dtype = torch.float32,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Result]:
    """Return the harness's scores of its tasks of these names.

    A task whose data is in `directory` runs on it without a network, the others fetch theirs. limit: 0 for all items;
    of the data in `directory` it is the subset that `score_task` takes. No random state is changed.
    """
    check_installed()
    check_vocabulary(model, tokenizer)
    answers = HarnessModel(model=model, tokenizer=tokenizer, dtype=dtype, batch_tokens=batch_tokens)
    local = [name for name in names if has_data(name, directory)]
    others = [name for name in names if name not in local]
    found: dict[str, dict[str, float]] = {}
    if others:
        found |= evaluate(answers, others, all_tasks(others), limit=limit)
    if local:
        with tempfile.TemporaryDirectory() as folder:
            found |= evaluate(answers, local, local_tasks(directory, local, Path(folder), limit=limit), limit=0)
    return [_result(name, numbers, limit, directory) for name, numbers in found.items()]


def _result(name: str, numbers: Mapping[str, float], limit: int, directory: Path) -> Result:
    """The record of a task, whose numbers are METRIC and METRIC_stderr."""
    identity = f"lm-evaluation-harness {version('lm-eval')} {name}"
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    return Result(
        task=TaskRecord(name=f"harness-{name}", fingerprint=fingerprint, limit=limit),
        data=DataRecord(name=str(directory), fingerprint=fingerprint),
        scores={metric: value for metric, value in numbers.items() if not metric.endswith(ERROR)},
        standard_errors={metric: numbers[metric + ERROR] for metric in numbers if metric + ERROR in numbers},
        items=0,
    )
