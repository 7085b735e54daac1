"""Tasks on the way: at each evaluation the model is scored on a fixed subset, into metrics.jsonl and evaluations/.

It is the model itself and never its compiled wrapper, so that nothing is compiled again; no random number is drawn.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from quillgpt import checkpoint
from quillgpt.config import RunConfig
from quillgpt.distributed import Ranks, first_goes_first
from quillgpt.errors import DiskError
from quillgpt.evaluate.asked_tasks import have_task_data
from quillgpt.evaluate.results import Computed, ModelRecord, task_evaluation, write_evaluation
from quillgpt.evaluate.score import score_task
from quillgpt.evaluate.score_columns import columns
from quillgpt.evaluate.tasks import Task, chosen_tasks
from quillgpt.model.sizes import parameter_count
from quillgpt.run_dir import RunDirectory
from quillgpt.train.resolve import DTYPES
from quillgpt.train.resume import Position
from quillgpt.train.setup import Parts

Say = Callable[[str], None]


def ready_tasks(config: RunConfig, ranks: Ranks, say: Say) -> list[tuple[Task, int]]:
    """The tasks of the settings with their limits; their files are fetched where missing, and read once to be sure."""
    settings = config.train
    tasks = chosen_tasks(settings.eval_tasks) if settings.eval_tasks else []
    with first_goes_first(ranks):
        have_task_data(tasks, Path(settings.task_data), may_fetch=ranks.is_first, flag="--task-data", say=say)
    return tasks


class TaskScores:
    """Scores the model on the tasks; rank 0 keeps the results."""

    def __init__(
        self,
        tasks: Sequence[tuple[Task, int]],
        directory: Path,
        run: RunDirectory,
        parts: Parts,
        ranks: Ranks,
        say: Say,
    ) -> None:
        self._tasks, self._directory, self._run = tasks, directory, run
        self._parts, self._ranks, self._say = parts, ranks, say
        choices = parts.choices
        self._computed = Computed(
            device=choices.device, dtype=choices.dtype, threads=choices.threads, torch=str(torch.__version__)
        )

    def at(self, position: Position) -> dict[str, float]:
        """The scores now, with their standard errors, by the names they have in metrics.jsonl."""
        found: dict[str, float] = {}
        model = self._record(position) if self._tasks and self._ranks.is_first else None
        for task, limit in self._tasks:
            result = score_task(
                task,
                self._parts.model,
                self._parts.data.tokenizer,
                directory=self._directory,
                limit=limit,
                device=self._parts.choices.device,
                dtype=DTYPES[self._parts.choices.dtype],
                ranks=self._ranks,
            )
            found |= columns(result)
            if model is not None:
                evaluation = task_evaluation(task, result, self._directory, model, self._computed)
                try:
                    write_evaluation(evaluation, self._run.evaluations, f"step-{position.step:06d}")
                except DiskError as error:
                    self._say(f"{error}; training goes on without it")
        return found

    def _record(self, position: Position) -> ModelRecord:
        parts = self._parts
        return ModelRecord(
            name=str(self._run.path),
            fingerprint=checkpoint.fingerprint_of(parts.model, parts.adapter),
            parameters=parameter_count(parts.model.config),
            step=position.step,
            tokens=position.tokens,
        )
