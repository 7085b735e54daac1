"""From a list of names to tasks whose data is there: `loss` besides the menu, files fetched and read beforehand."""

from collections.abc import Callable, Sequence
from pathlib import Path

from quillgpt.errors import ConfigError, pick
from quillgpt.evaluate.loss_task import LOSS, MEANING
from quillgpt.evaluate.tasks import TASK_DATA, TASK_GROUPS, TASKS, Task, chosen_tasks, fetch_task


def asked_tasks(text: str) -> tuple[bool, list[tuple[Task, int]]]:
    """Whether `loss` is in a list such as "loss,hellaswag:200", and the other tasks with their limits."""
    entries = [entry.strip() for entry in text.split(",")]
    for entry in entries:
        name, colon, _ = entry.partition(":")
        pick({LOSS: MEANING} | dict(TASKS) | dict(TASK_GROUPS), name, "tasks")
        if name == LOSS and colon:
            raise ConfigError(f"tasks = {entry!r}: loss has no questions to count; --eval-tokens limits it")
    others = [entry for entry in entries if entry != LOSS]
    return LOSS in entries, chosen_tasks(",".join(others)) if others else []


def have_task_data(
    tasks: Sequence[tuple[Task, int]], directory: Path, *, may_fetch: bool, flag: str, say: Callable[[str], None]
) -> None:
    """Have each task's files in the directory, and read them, so that what is wrong with them is told before the work.

    They are fetched where that is the usual directory and `may_fetch`, unless an archive's files lie there unpacked;
    `flag` is what names another directory.
    """
    for task, _ in tasks:
        is_unpacked = task.archive != "" and all((directory / path).is_file() for path in task.paths)
        if directory == TASK_DATA and may_fetch and not is_unpacked:
            if not (directory / task.file_name).exists():
                say(f"fetching {task.download.url} ({task.download.bytes / 1e6:.1f} MB, once; {task.licence})")
            fetch_task(task, directory, instead=f"{flag} DIRECTORY")
        task.read(directory)
