"""The loop: what evaluations must not change, which checkpoints are kept, and what happens to non-finite numbers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.config import RunConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, NonFiniteError
from quillgpt.evaluate.run import evaluate_only
from quillgpt.recipes import recipe_config
from quillgpt.training import loop
from quillgpt.training.loop import train
from small_runs import changed, column, lines_of, newest, run_of, tensors_of, with_losses


def test_evaluating_saving_and_sampling_more_often_does_not_change_the_run(
    small_run: RunConfig, tmp_path: Path
) -> None:
    seldom = changed(small_run, dropout=0.3, eval_every=0, out=str(tmp_path / "seldom"))
    often = changed(small_run, dropout=0.3, eval_every=1, sample_every=5, save_every=1, out=str(tmp_path / "often"))
    train(seldom)
    train(often)
    assert column(seldom, "train_loss") == column(often, "train_loss")
    assert len(list(run_of(often).samples.glob("step-*.txt"))) == 4


def test_the_split_into_micro_batches_does_not_change_the_loss(small_run: RunConfig, tmp_path: Path) -> None:
    one = changed(small_run, batch_size=8, gradient_accumulation_steps=1, out=str(tmp_path / "one"))
    uneven = changed(small_run, batch_size=3, gradient_accumulation_steps=0, batch_tokens=256)
    train(one)
    train(uneven)
    assert column(uneven, "train_loss") == pytest.approx(column(one, "train_loss"), rel=1e-4)


def test_the_best_checkpoint_is_kept_and_never_replaced_by_a_worse_one(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_losses(monkeypatch, 3.0, 2.0, 2.5, 2.25, 2.75, 2.6)
    train(changed(small_run, steps=12, eval_every=2, save_every=2, keep_last=2))
    kept = checkpoint.committed(run_of(small_run))
    assert [found.step for found in kept] == [4, 10, 12]
    assert kept[-1].read_json("state.json")["best_loss"] == 2.0
    assert checkpoint.find(small_run.train.out).step == 4
    with_losses(monkeypatch, 2.1)
    train(changed(small_run, steps=14, save_every=0, eval_every=0, keep_last=1))  # the best loss survives a resume
    assert [found.step for found in checkpoint.committed(run_of(small_run))] == [4, 14]
    assert newest(small_run).read_json("state.json")["best_loss"] == 2.0


def test_a_better_loss_between_two_saves_is_saved(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with_losses(monkeypatch, 3.0, 2.0, 2.5)
    train(changed(small_run, steps=6, eval_every=2, save_every=0))
    assert checkpoint.find(small_run.train.out).step == 4


def test_the_run_ends_at_the_first_evaluation_that_reaches_the_loss(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    config = changed(small_run, stop_at_loss=2.0, eval_every=2, save_every=0)
    with_losses(monkeypatch, 2.5, 2.0, 2.0)
    assert train(config).step == 4
    assert lines_of(config)[-1]["has_reached_loss"] is True
    assert train(config).step == 4
    assert "lower --stop-at-loss to continue" in messages[-1]


# Non-finite numbers


def spoil(patch: pytest.MonkeyPatch, steps: set[int], value: float) -> None:
    """Multiply the loss of some steps by a value."""
    real = loop.gradients

    def gradients(wrapped: Any, *arguments: Any, **numbers: Any) -> torch.Tensor:
        loss_sum = real(wrapped, *arguments, **numbers)
        return loss_sum * value if numbers["step"] in steps else loss_sum

    patch.setattr(loop, "gradients", gradients)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_batch_is_named_and_never_reaches_the_weights(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str], value: float
) -> None:
    before = changed(small_run, steps=5, schedule="constant", out=str(tmp_path / "before"))
    train(before)
    spoil(monkeypatch, {5}, value)
    after = changed(small_run, steps=6, schedule="constant")
    train(after)
    ours, theirs = tensors_of(after), tensors_of(before)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert "step 5, tokens 1,280 to 1,536" in next(line for line in messages if "not applied" in line)
    assert lines_of(after)[-1]["skipped"] is True


def test_three_bad_steps_in_a_row_end_the_run_with_its_checkpoint_intact(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {3, 4, 6, 7, 12, 13, 14}, math.nan)  # two bad steps and a good one do not end it
    with pytest.raises(NonFiniteError, match=r"step 14, .*3 of 3 in a row.*last good checkpoint is intact") as raised:
        train(small_run)
    assert raised.value.exit_code == 70
    last = checkpoint.latest_intact(run_of(small_run))
    assert last is not None
    assert last.step == 10
    line = lines_of(small_run)[-1]
    assert (line["step"], line["train_loss"], line["skipped"], line["diverged"]) == (14, "nan", True, True)


def test_bad_steps_are_counted_across_a_resume(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {8, 9, 10}, math.nan)
    train(changed(small_run, steps=10))
    with pytest.raises(NonFiniteError, match=r"step 10, .*3 of 3 in a row"):
        train(small_run)


def test_non_finite_weights_are_never_saved_and_the_metrics_say_so(small_run: RunConfig, tmp_path: Path) -> None:
    for number, settings in enumerate(({"lr": 1e300}, {"weight_decay": 1e300})):
        for save_every in (0, 1):
            config = changed(small_run, steps=3, warmup_steps=0, save_every=save_every, log_every=100, eval_every=0)
            config = changed(config, out=str(tmp_path / f"{number}-{save_every}"), **settings)
            with pytest.raises(NonFiniteError, match="the last good checkpoint is intact"):
                train(config)
            assert checkpoint.committed(run_of(config)) == []
            assert lines_of(config)[-1]["diverged"] is True


# Entire runs


def test_evaluating_only_is_not_training_and_writes_no_checkpoint(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="use `quill eval`"):
        train(changed(small_run, eval_only=True))
    found = evaluate_only(changed(small_run, eval_only=True), Ranks())
    assert [entry.result.task.split for entry in found] == ["train", "val"]
    assert found[1].result.scores["loss"] == pytest.approx(math.log(257), rel=0.05)
    assert checkpoint.committed(run_of(small_run)) == []


def test_the_debug_recipe_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = changed(recipe_config("debug"), out="runs/debug", steps=150, eval_every=0, dtype="fp32", threads=1)
    outcome = train(config)
    assert column(config, "train_loss")[0] > 4.5
    assert outcome.validation.loss < 3.0
    model, tokenizer = checkpoint.load_model(outcome.run)
    assert tokenizer.decode(tokenizer.encode("def f(): ...")) == "def f(): ..."
    assert not model.training
