"""Evaluate models on texts and tasks: `quill eval`, `quill train --eval-only`, and the tasks scored during training.

Whatever can be checked is checked before the first computation, and each result is written as soon as it exists.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from quillgpt import checkpoint
from quillgpt.checkpoint.init_from import evaluation_tokens
from quillgpt.config import RunConfig
from quillgpt.distributed import Ranks, main_process_first, process_group
from quillgpt.errors import ConfigError, DiskError, NonFiniteError, pick
from quillgpt.evaluate.harness import all_tasks, check_installed, has_data, score_harness
from quillgpt.evaluate.loss import LOSS, score_loss
from quillgpt.evaluate.model import (
    EvaluatedModel,
    EvaluationRequest,
    EvaluationRuntime,
    configured_model,
    evaluation_runtime,
    runtime_record,
)
from quillgpt.evaluate.results import (
    Evaluation,
    ModelRecord,
    Result,
    metric_columns,
    score_task,
    write_evaluation,
)
from quillgpt.evaluate.tasks import TASK_DATA, TASK_GROUPS, TASKS, Task, parse_tasks
from quillgpt.evaluate.text import EvaluationText, prepared_split
from quillgpt.model.gpt import GPT
from quillgpt.model.precision import DTYPES
from quillgpt.model.sizes import parameter_count
from quillgpt.pretrained.adapter import Adapter
from quillgpt.progress import Progress, no_progress
from quillgpt.run_dir import RunDirectory
from quillgpt.runtime import Runtime, choose_device, choose_dist_backend, detect, set_up_torch
from quillgpt.sample.engine import check_vocabulary
from quillgpt.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def requested_tasks(text: str) -> tuple[bool, list[tuple[Task, int]]]:
    """Return whether `loss` is in a list such as "loss,hellaswag:200", and the other tasks with their limits."""
    entries = [entry.strip() for entry in text.split(",")]
    for entry in entries:
        name, colon, _ = entry.partition(":")
        pick({LOSS: None, **TASKS, **TASK_GROUPS}, name, "tasks")
        if name == LOSS and colon:
            raise ConfigError(f"tasks = {entry!r}: loss has no questions to count; --eval-tokens limits it")
    others = [entry for entry in entries if entry != LOSS]
    return LOSS in entries, parse_tasks(",".join(others)) if others else []


def prepare_task_data(tasks: Sequence[tuple[Task, int]], directory: Path, *, may_fetch: bool, flag: str) -> None:
    """Fetch the missing files of the tasks, and read all files once, so that their faults are found before the work.

    Files are fetched only into the default directory and if `may_fetch`, unless an unpacked archive is there. flag: the
    option for another directory.
    """
    for task, _ in tasks:
        is_unpacked = task.archive != "" and all((directory / path).is_file() for path in task.paths)
        if directory == TASK_DATA and may_fetch and not is_unpacked:
            if not (directory / task.file_name).exists():
                megabytes = task.download.bytes / 1e6
                logger.info("fetching %s (%.1f MB, once; %s)", task.download.url, megabytes, task.licence)
            task.fetch(directory, instead=f"{flag} DIRECTORY")
        task.read(directory)


def evaluate_models(
    models: Sequence[EvaluatedModel], request: EvaluationRequest, ranks: Ranks, progress: Progress = no_progress
) -> list[Evaluation]:
    """Evaluate one model after the other, after all checks that need no computation.

    Each result is written to the model's folder, or to `request.out`, as soon as it exists.
    """
    machine = detect()
    device = choose_device(request.device, machine, ranks)[0]
    backend = choose_dist_backend(request.dist_backend, device.partition(":")[0], machine, ranks)
    found: list[Evaluation] = []
    with process_group(ranks, backend=backend, timeout_seconds=request.dist_timeout_seconds, device=device):
        _check(models, request)
        with main_process_first(ranks):
            flag, may_fetch = request.task_data_flag, ranks.is_main_process
            prepare_task_data(request.tasks, request.task_data, may_fetch=may_fetch, flag=flag)
        with tempfile.TemporaryDirectory(prefix="quill-", ignore_cleanup_errors=True) as folder:
            evaluator = _Evaluator(request, ranks, progress, Path(folder))
            for evaluated in models:
                runtime = evaluation_runtime(evaluated, request, machine, ranks)
                for evaluation in evaluator.evaluations(evaluated, runtime):
                    if ranks.is_main_process:
                        write_evaluation(evaluation, Path(request.out or evaluated.folder), evaluated.file_name)
                    found.append(evaluation)
    return found


def _check(models: Sequence[EvaluatedModel], request: EvaluationRequest) -> None:
    """Refuse models without data or tokenizer, and harness tasks that cannot be run."""
    for evaluated in models:
        if request.has_loss and request.data is not None:
            request.data.check(request.splits)
        elif request.has_loss:
            evaluated.data_directory()
        _ = evaluated.tokenizer.fingerprint  # read here, because a missing tokenizer is an error when it is first used
    if request.harness:
        check_installed()
        others = [name for name in request.harness if not has_data(name, request.task_data)]
        if others:
            all_tasks(others)


@dataclass(frozen=True)
class _Evaluator:
    """Evaluates models. texts: those encoded into the folder, by tokenizer, split and number of tokens."""

    request: EvaluationRequest
    ranks: Ranks
    progress: Progress
    folder: Path
    texts: dict[tuple[str, str, int], EvaluationText] = field(default_factory=dict)

    def evaluations(self, evaluated: EvaluatedModel, runtime: EvaluationRuntime) -> Iterator[Evaluation]:
        """Yield the evaluations of one model."""
        set_up_torch(runtime.device, threads=runtime.threads, matmul_precision=runtime.matmul_precision)
        self.progress(f"{evaluated.name}: loading", 0, 1)
        model = evaluated.load(runtime.device)
        check_vocabulary(model, evaluated.tokenizer)
        _check_finite(model, evaluated.name)
        record = ModelRecord(
            name=evaluated.name,
            fingerprint=evaluated.fingerprint,
            parameters=parameter_count(evaluated.config),
            step=evaluated.step,
            tokens=evaluated.tokens,
        )
        for result in self._results(evaluated, model, runtime):
            if result.cut_contexts:
                cut = f"{result.cut_contexts:,} contexts were cut to fit its context"
                logger.info("%s: %s: %s", evaluated.name, result.task.name, cut)
            yield Evaluation(model=record, computed=runtime_record(runtime), result=result)

    def _results(self, evaluated: EvaluatedModel, model: GPT, runtime: EvaluationRuntime) -> Iterator[Result]:
        request = self.request
        for split in request.splits if request.has_loss else ():
            yield self._loss(evaluated, model, runtime, split)
        for task, limit in request.tasks:
            yield score_task(
                task,
                model,
                evaluated.tokenizer,
                directory=request.task_data,
                limit=limit,
                dtype=DTYPES[runtime.dtype],
                batch_tokens=runtime.batch_tokens,
                ranks=self.ranks,
                progress=partial(self.progress, f"{evaluated.name}: {task.name}"),
            )
        if request.harness:
            self.progress(f"{evaluated.name}: lm-evaluation-harness", 0, 1)
            yield from score_harness(
                request.harness,
                model,
                evaluated.tokenizer,
                directory=request.task_data,
                limit=request.limit,
                dtype=DTYPES[runtime.dtype],
                batch_tokens=runtime.batch_tokens,
            )

    def _loss(self, evaluated: EvaluatedModel, model: GPT, runtime: EvaluationRuntime, split: str) -> Result:
        """The loss on a split; of the training split, as many tokens from its start as the validation text has."""
        limit, length = self.request.eval_tokens, model.config.context_length
        validation = self._text(evaluated, "val", limit)
        count = validation.windows(length, limit).target_count
        is_limited = validation.windows(length, 0).target_count > count
        text = self._text(evaluated, "train", count) if split == "train" else validation
        scored_in_training = evaluated.own_data.eval_tokens if self.request.data is None and evaluated.own_data else 0
        if split == "train":
            amount = f"the train split's first {count:,} tokens, as many as of the validation text"
            logger.info("%s: %s", evaluated.name, amount)
        elif 0 < scored_in_training < count:
            amount = f"its training scored the first {scored_in_training:,} of {count:,} tokens"
            logger.info("%s: %s; --eval-tokens %d repeats that number", evaluated.name, amount, scored_in_training)
        return score_loss(
            model,
            evaluated.tokenizer,
            text,
            max_tokens=count,
            limit=limit if is_limited else 0,
            batch_size=runtime.batch_size,
            dtype=DTYPES[runtime.dtype],
            ranks=self.ranks,
            progress=partial(self.progress, f"{evaluated.name}: {LOSS} {split}"),
        )

    def _text(self, evaluated: EvaluatedModel, split: str, max_tokens: int) -> EvaluationText:
        """A split in the model's tokens; of text that is encoded here at least `max_tokens` of them (0: all)."""
        data = self.request.data
        if data is None:
            return prepared_split(evaluated.data_directory(), split)
        key = (evaluated.tokenizer.fingerprint, split, max_tokens)
        if key not in self.texts:
            self.progress(f"{evaluated.name}: reading {data.path}", 0, 1)
            folder = self.folder / str(len(self.texts))
            self.texts[key] = data.split(split, evaluated.tokenizer, folder, max_tokens)
        return self.texts[key]


def _check_finite(model: GPT, name: str) -> None:
    """Refuse weights with NaN or infinity: the loss would be NaN, and an accuracy noise that looks like a result."""
    for weight_name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise NonFiniteError(f"{name}: {weight_name} is not finite; use an earlier checkpoint")


def prepared_tasks(config: RunConfig, ranks: Ranks) -> list[tuple[Task, int]]:
    """Return the tasks to score during training, with their limits, after `prepare_task_data`."""
    settings = config.train
    tasks = parse_tasks(settings.eval_tasks) if settings.eval_tasks else []
    with main_process_first(ranks):
        prepare_task_data(tasks, Path(settings.task_data), may_fetch=ranks.is_main_process, flag="--task-data")
    return tasks


@dataclass(frozen=True, kw_only=True)
class TaskScorer:
    """Scores a model on tasks during training, on fixed subsets.

    It evaluates the model itself and not its compiled wrapper, so nothing is compiled again; no random number is drawn.
    """

    tasks: Sequence[tuple[Task, int]]
    directory: Path
    run: RunDirectory
    model: GPT
    tokenizer: Tokenizer
    adapter: Adapter | None
    runtime: Runtime
    ranks: Ranks

    def score(self, step: int, tokens: int) -> dict[str, float]:
        """Return scores and standard errors by their names in metrics.jsonl; the main process writes evaluations/."""
        scores: dict[str, float] = {}
        record = self._record(step, tokens) if self.tasks and self.ranks.is_main_process else None
        for task, limit in self.tasks:
            result = score_task(
                task,
                self.model,
                self.tokenizer,
                directory=self.directory,
                limit=limit,
                dtype=DTYPES[self.runtime.dtype],
                ranks=self.ranks,
            )
            scores |= metric_columns(result)
            if record is not None:
                evaluation = Evaluation(model=record, computed=runtime_record(self.runtime), result=result)
                try:
                    write_evaluation(evaluation, self.run.evaluations, f"step-{step:06d}")
                except DiskError as error:
                    logger.warning("%s; training continues without it", error)
        return scores

    def _record(self, step: int, tokens: int) -> ModelRecord:
        return ModelRecord(
            name=str(self.run.path),
            fingerprint=checkpoint.weights_fingerprint(self.model, self.adapter),
            parameters=parameter_count(self.model.config),
            step=step,
            tokens=tokens,
        )


def evaluate_only(config: RunConfig, ranks: Ranks, progress: Progress = no_progress) -> list[Evaluation]:
    """Evaluate the run's best checkpoint, or the model it starts from, on both splits of its data and `eval_tasks`.

    No data is prepared, and nothing of the run changes but its evaluations.
    """
    train = config.train
    request = EvaluationRequest(
        tasks=tuple(requested_tasks(train.eval_tasks)[1]) if train.eval_tasks else (),
        splits=("train", "val"),
        task_data=Path(train.task_data),
        task_data_flag="--task-data",
        eval_tokens=evaluation_tokens(config),
        device=train.device,
        dtype=train.dtype,
        threads=train.threads,
        batch_size=train.batch_size,
        dist_backend=train.dist_backend,
        dist_timeout_seconds=train.dist_timeout_seconds,
    )
    return evaluate_models([configured_model(config)], request, ranks, progress)
