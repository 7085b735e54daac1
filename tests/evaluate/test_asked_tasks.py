"""From names to tasks whose data is there: what is fetched, what is not, and what is told before the work."""

from pathlib import Path

import pytest
import task_files

from quillgpt.errors import DataError
from quillgpt.evaluate import asked_tasks as module
from quillgpt.evaluate.asked_tasks import asked_tasks, have_task_data
from quillgpt.evaluate.tasks import TASK_DATA, TASKS, Task


@pytest.mark.parametrize(
    ("text", "has_loss", "names"),
    [
        ("loss", True, []),
        ("loss, piqa:5", True, [("piqa", 5)]),
        ("lambada,loss,hellaswag:2", True, [("lambada", 0), ("hellaswag-completion", 2), ("hellaswag-harness", 2)]),
        ("piqa", False, [("piqa", 0)]),
    ],
)
def test_loss_stands_among_the_tasks(text: str, has_loss: bool, names: list[tuple[str, int]]) -> None:
    found, tasks = asked_tasks(text)
    assert (found, [(task.name, limit) for task, limit in tasks]) == (has_loss, names)


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is fetched from here on, in an empty directory; instead of the network, files of our own."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def fetch(task: Task, directory: Path, *, instead: str) -> Path:
        names.append(f"{task.name} {instead}")
        return task_files.write_tasks(directory, count=4)

    monkeypatch.setattr(module, "fetch_task", fetch)
    return names


def have(name: str, directory: Path, *, may_fetch: bool = True) -> list[str]:
    """What is said while the data of a task is made sure of."""
    said: list[str] = []
    have_task_data([(TASKS[name], 0)], directory, may_fetch=may_fetch, flag="--task-data", say=said.append)
    return said


def test_what_is_missing_in_the_usual_place_is_fetched_and_said(fetched: list[str]) -> None:
    (line,) = have("piqa", TASK_DATA)
    assert line.startswith(f"fetching {TASKS['piqa'].download.url} (")
    assert "MB, once" in line
    assert fetched == ["piqa --task-data DIRECTORY"]


def test_files_of_an_archive_that_lie_there_unpacked_are_taken(fetched: list[str]) -> None:
    task_files.write_tasks(TASK_DATA, count=4)
    assert have("piqa", TASK_DATA) == []
    assert fetched == []


def test_nothing_is_fetched_into_a_directory_of_the_user(fetched: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        have("piqa", tmp_path / "mine")
    task_files.write_tasks(tmp_path / "mine", count=4)
    have("piqa", tmp_path / "mine")
    assert fetched == []


def test_another_rank_than_the_first_fetches_nothing(fetched: list[str]) -> None:
    with pytest.raises(DataError):
        have("piqa", TASK_DATA, may_fetch=False)
    assert fetched == []
