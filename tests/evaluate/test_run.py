"""Tasks scored during training: the numbers are kept, and the run is bit for bit the same as without them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from fault_injection import Disk
from quillgpt import checkpoint
from quillgpt.config import RunConfig, updated
from quillgpt.errors import ConfigError, DataError
from quillgpt.evaluate import run as evaluate_run
from quillgpt.evaluate.results import score_task
from quillgpt.evaluate.run import prepare_task_data, requested_tasks
from quillgpt.evaluate.tasks import TASK_DATA, TASKS, Task
from quillgpt.lab.run_record import read_run
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.training.loop import train
from task_files import write_tasks

NAME = "hellaswag_completion_accuracy_norm"


def test_loss_may_be_among_the_requested_tasks() -> None:
    hellaswag = [("hellaswag-completion", 2), ("hellaswag-harness", 2)]
    for text, has_loss, names in (
        ("loss", True, []),
        ("loss, piqa:5", True, [("piqa", 5)]),
        ("lambada,loss,hellaswag:2", True, [("lambada", 0), *hellaswag]),
        ("piqa", False, [("piqa", 0)]),
    ):
        found, tasks = requested_tasks(text)
        assert (found, [(task.name, limit) for task, limit in tasks]) == (has_loss, names)


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that are fetched, in an empty directory; small files replace those of the network."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def fetch(task: Task, directory: Path, *, instead: str) -> None:
        names.append(f"{task.name} {instead}")
        write_tasks(directory, "piqa")

    monkeypatch.setattr(Task, "fetch", fetch)
    return names


def prepare_piqa(directory: Path, *, may_fetch: bool = True) -> None:
    prepare_task_data([(TASKS["piqa"], 0)], directory, may_fetch=may_fetch, flag="--task-data")


def test_missing_data_is_fetched_into_the_default_directory(fetched: list[str], messages: list[str]) -> None:
    with pytest.raises(DataError):  # not by other ranks than the first
        prepare_piqa(TASK_DATA, may_fetch=False)
    assert fetched == messages == []
    prepare_piqa(TASK_DATA)
    (line,) = messages
    assert line.startswith(f"fetching {TASKS['piqa'].download.url} (1.8 MB, once")
    assert fetched == ["piqa --task-data DIRECTORY"]


def test_nothing_is_fetched_for_files_that_are_there_or_into_another_directory(
    fetched: list[str], messages: list[str], tmp_path: Path
) -> None:
    write_tasks(TASK_DATA, "piqa")  # unpacked
    prepare_piqa(TASK_DATA)
    with pytest.raises(DataError):
        prepare_piqa(tmp_path / "mine")
    prepare_piqa(write_tasks(tmp_path / "mine", "piqa"))
    assert fetched == messages == []


@pytest.fixture
def scored(small_run: RunConfig, tmp_path: Path) -> RunConfig:
    """The small run with dropout, scored on eight questions at steps 10 and 20."""
    questions = write_tasks(tmp_path / "questions", "hellaswag")
    settings = {"context_length": 64, "eval_tasks": "hellaswag:8", "task_data": str(questions), "dropout": 0.2}
    return changed(small_run, **settings)


def changed(config: RunConfig, **settings: Any) -> RunConfig:
    return updated(config, settings, where="test")


def tensors(config: RunConfig) -> dict[str, torch.Tensor]:
    folder = RunDirectory(Path(config.train.out)).checkpoints / "step-000020"
    return load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")


def assert_same_tensors(one: RunConfig, other: RunConfig) -> None:
    found, expected = tensors(one), tensors(other)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def scores(config: RunConfig) -> list[tuple[Any, Any]]:
    lines = read_metrics(RunDirectory(Path(config.train.out)).metrics)
    return [(line["step"], line[NAME]) for line in lines if NAME in line]


def test_scoring_and_resuming_change_neither_weights_nor_scores(scored: RunConfig, tmp_path: Path) -> None:
    scored = changed(scored, schedule="constant")  # the rate does not depend on the number of steps
    plain = changed(scored, eval_tasks="", out=str(tmp_path / "plain"))
    resumed = changed(scored, out=str(tmp_path / "resumed"))
    assert train(scored).validation == train(plain).validation
    assert_same_tensors(scored, plain)
    train(changed(resumed, steps=10))
    train(resumed)
    assert_same_tensors(resumed, scored)
    assert scores(resumed) == scores(scored)
    assert [step for step, _ in scores(scored)] == [10, 20]


def test_tasks_may_be_added_when_a_run_continues(scored: RunConfig) -> None:
    train(changed(scored, steps=10, eval_tasks=""))
    train(scored)
    assert [step for step, _ in scores(scored)] == [20]


def test_the_scores_are_those_of_the_saved_model(scored: RunConfig) -> None:
    train(scored)
    run = RunDirectory(Path(scored.train.out))
    record = read_run(run.path)
    for step in (10, 20):
        saved = run.checkpoints / f"step-{step:06d}"
        model, tokenizer = checkpoint.load_model(saved)
        line = next(line for line in record.lines if line["step"] == step)
        for style in ("completion", "harness"):
            task = TASKS[f"hellaswag-{style}"]
            expected = score_task(task, model, tokenizer, directory=Path(scored.train.task_data), limit=8)
            content = json.loads((run.evaluations / f"step-{step:06d}-hellaswag-{style}-8.json").read_text())
            assert (content["scores"], content["standard_errors"]) == (expected.scores, expected.standard_errors)
            assert content["items"] == 8
            assert content["model"]["fingerprint"] == checkpoint.to_source(checkpoint.find(saved)).fingerprint
            assert content["model"]["tokens"] == line["tokens"]
            assert line[f"hellaswag_{style}_accuracy_norm"] == expected.scores["accuracy_norm"]
            assert line[f"hellaswag_{style}_accuracy_standard_error"] == expected.standard_errors["accuracy"]
    assert len(record.evaluations) == 4


def test_a_lora_run_has_the_fingerprint_of_its_merged_weights(scored: RunConfig, tmp_path: Path) -> None:
    base = train(changed(scored, steps=2, eval_tasks="", eval_every=0))
    lora = changed(scored, init=str(base.run), lora_rank=2, steps=4, eval_every=0, out=str(tmp_path / "lora"))
    outcome = train(lora)
    content = json.loads((outcome.run / "evaluations" / "step-000004-hellaswag-harness-8.json").read_text())
    assert content["model"]["fingerprint"] == checkpoint.open_model(outcome.run).fingerprint


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.usefixtures("fresh_compiler")
def test_scoring_compiles_nothing(scored: RunConfig) -> None:
    train(changed(scored, compile="on", compile_backend="eager", steps=4, eval_every=1, save_every=0))
    assert counters["stats"]["unique_graphs"] == 1
    assert [step for step, _ in scores(scored)] == [1, 2, 3, 4]


def test_one_question_is_enough(scored: RunConfig) -> None:
    train(changed(scored, eval_tasks="hellaswag-completion:1", steps=1))
    (content,) = read_run(scored.train.out).evaluations
    assert content["items"] == 1
    assert content["standard_errors"]["accuracy"] == 0.0


def test_wrong_tasks_and_missing_files_are_refused_before_the_run_directory_exists(
    scored: RunConfig, tmp_path: Path
) -> None:
    for tasks, message in (
        ("helaswag", r"invalid tasks: 'helaswag' \(did you mean hellaswag\?\)"),
        ("hellaswag:0", "a limit of 1 or more"),
        ("hellaswag:many", "a limit of 1 or more"),
        ("hellaswag,hellaswag-harness", "hellaswag-harness twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(changed(scored, eval_tasks=tasks))
    with pytest.raises(DataError, match=r"hellaswag_val\.jsonl"):
        train(changed(scored, task_data=str(tmp_path)))
    assert not Path(scored.train.out).exists()


def test_a_full_disk_loses_the_evaluation_but_not_the_run(
    scored: RunConfig, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = evaluate_run.write_evaluation

    def no_space() -> None:
        raise OSError(28, "No space left on device")

    def write_to_full_disk(*arguments: Any) -> Path:
        with monkeypatch.context() as patch:
            disk = Disk(patch, at=1, fail=no_space)
            disk.lasting = 1000
            return write(*arguments)

    monkeypatch.setattr(evaluate_run, "write_evaluation", write_to_full_disk)
    train(scored)
    assert [step for step, _ in scores(scored)] == [10, 20]
    assert read_run(scored.train.out).evaluations == []
    assert sum("training continues without it" in line for line in messages) == 4
