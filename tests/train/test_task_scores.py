"""Tasks scored while training: the numbers are kept, and the run is the one that it is without them."""

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
from question_files import write_hellaswag
from quillgpt import checkpoint
from quillgpt.config import RunConfig, updated
from quillgpt.data import load_data_tokenizer
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, DataError
from quillgpt.evaluate.score import score_task
from quillgpt.evaluate.score_columns import scores_told
from quillgpt.evaluate.tasks import TASKS
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.run_record import read_run
from quillgpt.train import task_scores
from quillgpt.train.loop import train

NAME = "hellaswag_completion_accuracy_norm"


@pytest.fixture
def scored(small_run: RunConfig, tmp_path: Path) -> RunConfig:
    """The small run, with dropout, that scores eight questions at steps 10 and 20."""
    questions = write_hellaswag(tmp_path / "questions")
    return updated(small_run, {"eval_tasks": "hellaswag:8", "task_data": str(questions), "dropout": 0.2}, where="test")


def changed(config: RunConfig, **settings: Any) -> RunConfig:
    return updated(config, settings, where="test")


def weights(config: RunConfig) -> list[dict[str, torch.Tensor]]:
    folder = RunDirectory(Path(config.train.out)).checkpoints
    names = ("model.safetensors", "optimizer.safetensors")
    return [load_file(folder / "step-000020" / name) for name in names]


def same(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> bool:
    return all(
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        for one, other in zip(left, right, strict=True)
    )


def test_a_run_with_tasks_is_bitwise_the_run_without(scored: RunConfig, tmp_path: Path) -> None:
    plain = changed(scored, eval_tasks="", out=str(tmp_path / "plain"))
    assert train(scored).held_out == train(plain).held_out
    assert same(weights(scored), weights(plain))


def test_stopped_and_resumed_it_has_the_same_weights_and_scores(scored: RunConfig, tmp_path: Path) -> None:
    twice = changed(scored, schedule="constant")  # whose rate does not depend on the last step
    whole = changed(twice, out=str(tmp_path / "whole"))
    train(whole)
    train(changed(twice, steps=10))
    train(twice)
    assert same(weights(twice), weights(whole))
    assert told(twice) == told(whole)


def told(config: RunConfig) -> list[tuple[Any, Any]]:
    lines = read_metrics(RunDirectory(Path(config.train.out)).metrics)
    return [(line["step"], line[NAME]) for line in lines if NAME in line]


def test_tasks_may_be_changed_when_a_run_continues(scored: RunConfig) -> None:
    train(changed(scored, steps=10, eval_tasks=""))
    train(scored)
    assert [step for step, _ in told(scored)] == [20]


def test_the_scores_are_those_of_the_saved_model_with_their_errors(scored: RunConfig) -> None:
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
            assert content["scores"] == expected.scores
            assert content["standard_errors"] == expected.standard_errors
            assert content["items"] == 8
            assert content["model"]["fingerprint"] == checkpoint.as_source(checkpoint.find(saved)).fingerprint
            assert content["model"]["tokens"] == line["tokens"]
            assert line[f"hellaswag_{style}_accuracy_norm"] == expected.scores["accuracy_norm"]
            assert line[f"hellaswag_{style}_accuracy_standard_error"] == expected.standard_errors["accuracy"]
    assert len(record.evaluations) == 4


def test_a_lora_run_tells_the_fingerprint_of_its_merged_weights(scored: RunConfig, tmp_path: Path) -> None:
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
def test_beside_a_compiled_model_nothing_is_compiled_again(scored: RunConfig) -> None:
    train(changed(scored, compile="on", compile_backend="eager", steps=4, eval_every=1, save_every=0))
    assert counters["stats"]["unique_graphs"] == 1
    assert [step for step, _ in told(scored)] == [1, 2, 3, 4]


def test_each_rank_scores_its_share(scored: RunConfig, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ranks add up is the whole; `total` is where they meet."""
    model, _ = checkpoint.load_model(train(changed(scored, steps=2, eval_tasks="")).run)
    shares: list[torch.Tensor] = []
    monkeypatch.setattr("quillgpt.evaluate.score.total", lambda values, ranks: shares.append(values) or values)
    for rank, count in ((0, 1), (0, 2), (1, 2)):
        score_task(
            TASKS["hellaswag-completion"],
            model,
            load_data_tokenizer(prepared),
            directory=Path(scored.train.task_data),
            limit=8,
            ranks=Ranks(rank=rank, world_size=count),
        )
    assert torch.equal(shares[1] + shares[2], shares[0])
    assert shares[1].abs().sum() > 0


@pytest.mark.parametrize("limit", [1, 2])
def test_any_limit_works(scored: RunConfig, limit: int) -> None:
    train(changed(scored, eval_tasks=f"hellaswag-completion:{limit}", steps=1))
    (content,) = read_run(scored.train.out).evaluations
    assert content["items"] == limit
    assert (content["standard_errors"]["accuracy"] == 0.0) or limit > 1


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ("helaswag", r"tasks = 'helaswag' does not exist \(did you mean hellaswag\?\)"),
        ("hellaswag:0", "a limit of 1 or more"),
        ("hellaswag:many", "a limit of 1 or more"),
        ("hellaswag,hellaswag-harness", "hellaswag-harness twice"),
    ],
)
def test_a_wrong_task_is_refused_before_anything_is_made(scored: RunConfig, tasks: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        train(changed(scored, eval_tasks=tasks))
    assert not Path(scored.train.out).exists()


def test_missing_files_are_told_before_anything_is_made(scored: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hellaswag_val\.jsonl"):
        train(changed(scored, task_data=str(tmp_path)))
    assert not Path(scored.train.out).exists()


def test_a_full_disk_loses_the_record_and_not_the_run(scored: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    written = task_scores.write_evaluation

    def full(*arguments: Any) -> Path:
        with monkeypatch.context() as patch:
            disk = Disk(patch, at=1, fail=no_space)
            disk.lasting = 1000
            return written(*arguments)

    monkeypatch.setattr(task_scores, "write_evaluation", full)
    train(scored)
    assert [step for step, _ in told(scored)] == [10, 20]
    assert read_run(scored.train.out).evaluations == []


def no_space() -> None:
    raise OSError(28, "No space left on device")


def test_the_screen_tells_the_normalised_accuracy_of_each_task() -> None:
    line = {
        "loss": 1.0,
        "held_out_loss": 1.0,
        "held_out_standard_error": 0.1,
        "hellaswag_completion_accuracy": 0.25,
        "hellaswag_completion_accuracy_standard_error": 0.03,
        NAME: 0.31,
        f"{NAME}_standard_error": 0.04,
        "lambada_accuracy": 0.5,
        "lambada_accuracy_standard_error": 0.05,
        "lambada_perplexity": 30.0,
        "lambada_perplexity_standard_error": 2.0,
    }
    assert scores_told(line) == [("hellaswag-completion", "0.310 ± 0.040"), ("lambada", "0.500 ± 0.050")]
