"""The menu of tasks. To add one: a file here with a `Task`, and a line in `TASKS`; the tests loop over it.

A task is a list of items and knows nothing of models. Its data is one download of pinned content, kept in `TASK_DATA`,
or files of the same form in another directory.
"""

from collections.abc import Mapping

from quillgpt.errors import ConfigError, pick, require
from quillgpt.evaluate.tasks.arc import ARC_CHALLENGE, ARC_EASY
from quillgpt.evaluate.tasks.hellaswag import HELLASWAG_COMPLETION, HELLASWAG_HARNESS
from quillgpt.evaluate.tasks.lambada import LAMBADA
from quillgpt.evaluate.tasks.piqa import PIQA
from quillgpt.evaluate.tasks.task import TASK_DATA, Task
from quillgpt.evaluate.tasks.winogrande import WINOGRANDE

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (HELLASWAG_COMPLETION, HELLASWAG_HARNESS, LAMBADA, PIQA, ARC_EASY, ARC_CHALLENGE, WINOGRANDE)
}

TASK_GROUPS: Mapping[str, tuple[str, ...]] = {
    "hellaswag": ("hellaswag-completion", "hellaswag-harness"),
}
"""names that stand for several tasks"""


def parse_tasks(text: str) -> list[tuple[Task, int]]:
    """Return the tasks of a list such as "hellaswag:200,piqa", each with its limit; 0: all items.

    An unknown name, a limit below 1, and a task named twice are a `ConfigError`.
    """
    found: dict[str, tuple[Task, int]] = {}
    for entry in text.split(","):
        name, colon, digits = entry.strip().partition(":")
        is_number = digits.isascii() and digits.isdigit() and 0 < int(digits[:20]) < 2**63
        require("tasks", entry.strip(), not colon or is_number, "NAME, or NAME:LIMIT with a limit of 1 or more")
        for task in pick({known: (known,) for known in TASKS} | dict(TASK_GROUPS), name, "tasks"):
            if task in found:
                raise ConfigError(f"tasks = {text!r} has {task} twice; name each task once")
            found[task] = (TASKS[task], int(digits or 0))
    return list(found.values())


__all__ = ["TASKS", "TASK_DATA", "TASK_GROUPS", "Task", "parse_tasks"]
