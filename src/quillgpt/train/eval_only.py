"""`--eval-only`: the evaluation of the model that a run of these settings has, by the code of `quill eval`."""

from pathlib import Path

from quillgpt.config import RunConfig
from quillgpt.distributed import Ranks
from quillgpt.evaluate.asked_tasks import asked_tasks
from quillgpt.evaluate.held_out_loss import HeldOutLoss
from quillgpt.evaluate.loss_task import LOSS
from quillgpt.evaluate.results import Evaluation
from quillgpt.train.evaluate_model import evaluate_models
from quillgpt.train.open_data import evaluation_tokens
from quillgpt.train.resolve import check_menus
from quillgpt.train.subject import subject_of
from quillgpt.train.wanted import Wanted, Watcher


def evaluate_only(config: RunConfig, ranks: Ranks, watcher: Watcher) -> list[Evaluation]:
    """Evaluate the run's best checkpoint, or the model it starts from, on both splits of its data and `eval_tasks`.

    Nothing is prepared, and nothing of the run is changed but its evaluations.
    """
    check_menus(config)
    return evaluate_models([subject_of(config)], wanted_by(config), ranks, watcher)


def wanted_by(config: RunConfig) -> Wanted:
    """What the settings of a run ask of an evaluation."""
    train = config.train
    return Wanted(
        tasks=tuple(asked_tasks(train.eval_tasks)[1]) if train.eval_tasks else (),
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


def held_out_of(evaluations: list[Evaluation]) -> HeldOutLoss:
    """The held-out loss among evaluations that have one."""
    found = next(entry for entry in evaluations if entry.task.name == LOSS and entry.task.split != "train")
    return HeldOutLoss(
        loss=found.scores["loss"],
        standard_error=found.standard_errors["loss"],
        bits_per_byte=found.scores["bits_per_byte"],
        tokens=found.items,
        bytes=found.bytes,
    )
