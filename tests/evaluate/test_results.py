"""The record of an evaluation: what it says, where it lies, and what it replaces."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import pytest

import quillgpt
from quillgpt.errors import NonFiniteError
from quillgpt.evaluate.results import (
    Computed,
    DataRecord,
    Evaluation,
    ModelRecord,
    TaskRecord,
    code_fingerprint,
    write_evaluation,
)

EVALUATION = Evaluation(
    model=ModelRecord(name="runs/a", fingerprint="m", parameters=7, step=400, tokens=9),
    task=TaskRecord(name="piqa", fingerprint="t", limit=0),
    data=DataRecord(name="data/tasks", fingerprint="d"),
    code="c",
    computed=Computed(device="cpu", dtype="fp32", threads=1, torch="2"),
    scores={"accuracy": 0.5},
    standard_errors={"accuracy": 0.1},
    items=20,
    seconds=1.5,
)


def changed(**parts: object) -> Evaluation:
    return dataclasses.replace(EVALUATION, **parts)


def test_the_file_holds_what_was_agreed(tmp_path: Path) -> None:
    path = write_evaluation(EVALUATION, tmp_path, "step-000400")
    content = json.loads(path.read_text())
    assert path.name == "step-000400-piqa.json"
    assert content["model"] == {"name": "runs/a", "fingerprint": "m", "parameters": 7, "step": 400, "tokens": 9}
    assert content["task"] == {"name": "piqa", "fingerprint": "t", "limit": 0, "split": None}
    assert content["data"] == {"name": "data/tasks", "fingerprint": "d"}
    assert content["computed"] == {"device": "cpu", "dtype": "fp32", "threads": 1, "torch": "2"}
    assert (content["code"], content["items"], content["seconds"]) == ("c", 20, 1.5)
    assert (content["scores"], content["standard_errors"]) == ({"accuracy": 0.5}, {"accuracy": 0.1})


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (TaskRecord(name="hellaswag-completion", fingerprint="", limit=200), "hellaswag-completion-200"),
        (TaskRecord(name="loss", fingerprint="", limit=0, split="val"), "loss-val"),
        (TaskRecord(name="loss", fingerprint="", limit=500, split="train"), "loss-train-500"),
    ],
)
def test_the_name_tells_the_task_its_split_and_its_limit(task: TaskRecord, name: str) -> None:
    assert changed(task=task).name == name


@pytest.mark.parametrize("part", ["scores", "code", "computed", "seconds"])
def test_the_same_model_task_and_data_replace_their_file(tmp_path: Path, part: str) -> None:
    other = {
        "scores": {"accuracy": 0.6},
        "code": "d",
        "computed": dataclasses.replace(EVALUATION.computed, device="cuda:0"),
        "seconds": 2.0,
    }[part]
    first = write_evaluation(EVALUATION, tmp_path, "a")
    second = write_evaluation(changed(**{part: other}), tmp_path, "a")
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == ["a-piqa.json"]
    assert json.loads(second.read_text())[part] == (dataclasses.asdict(other) if part == "computed" else other)


@pytest.mark.parametrize("part", ["model", "task", "data"])
def test_another_model_task_or_data_never_replace_it(tmp_path: Path, part: str) -> None:
    other = changed(**{part: dataclasses.replace(getattr(EVALUATION, part), fingerprint="other")})
    first = write_evaluation(EVALUATION, tmp_path, "a")
    before = first.read_bytes()
    paths = {write_evaluation(other, tmp_path, "a") for _ in range(2)}
    assert len(paths) == 1
    assert first not in paths
    assert first.read_bytes() == before


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a-piqa.json").write_text("{")
    assert write_evaluation(EVALUATION, tmp_path, "a").name == "a-piqa.json"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_told_and_not_kept(tmp_path: Path, value: float) -> None:
    with pytest.raises(NonFiniteError, match=r"runs/a: accuracy of piqa is (nan|inf)"):
        write_evaluation(changed(scores={"accuracy": value}), tmp_path, "a")
    assert list(tmp_path.iterdir()) == []


def test_the_code_is_known_by_all_its_files() -> None:
    root = Path(quillgpt.__file__).parent
    files = sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py"))
    content = b"".join(f"{name}\n".encode() + hashlib.sha256(path.read_bytes()).digest() for name, path in files)
    assert code_fingerprint() == hashlib.sha256(content).hexdigest()
