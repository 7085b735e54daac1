"""The loop: what a step sees, what an evaluation must not touch, what happens to bad numbers."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.config import RunConfig, updated
from quillgpt.errors import ConfigError, NonFiniteError, OutOfMemory
from quillgpt.evaluate.held_out_loss import HeldOutLoss
from quillgpt.recipes import load_recipe
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.train import loop
from quillgpt.train.guard import LIMIT_IN_A_ROW, Guard
from quillgpt.train.loop import train
from quillgpt.train.progress import Quiet


def changed(config: RunConfig, **settings: Any) -> RunConfig:
    return updated(config, settings, where="test")


def run_of(config: RunConfig) -> RunDirectory:
    return RunDirectory(Path(config.train.out))


def losses_of(config: RunConfig) -> list[float]:
    return [line["loss"] for line in read_metrics(run_of(config).metrics)]


def test_evaluating_and_sampling_more_often_does_not_change_the_run(small_run: RunConfig, tmp_path: Path) -> None:
    seldom = changed(small_run, dropout=0.3, eval_every=0, out=str(tmp_path / "seldom"))
    often = changed(small_run, dropout=0.3, eval_every=1, sample_every=5, save_every=1, out=str(tmp_path / "often"))
    train(seldom)
    train(often)
    assert losses_of(seldom) == losses_of(often)
    assert len(list(run_of(often).samples.glob("step-*.txt"))) == 4


def test_the_split_into_micro_batches_does_not_change_the_loss(small_run: RunConfig, tmp_path: Path) -> None:
    whole = changed(small_run, batch_size=8, gradient_accumulation_steps=1, out=str(tmp_path / "whole"))
    uneven = changed(
        small_run, batch_size=3, gradient_accumulation_steps=0, batch_tokens=256, out=str(tmp_path / "uneven")
    )
    train(whole)
    train(uneven)
    assert losses_of(uneven) == pytest.approx(losses_of(whole), rel=1e-4)


def test_metrics_tell_every_figure_and_count_every_token(small_run: RunConfig) -> None:
    started = time.perf_counter()
    train(small_run)
    wall_seconds = time.perf_counter() - started
    lines = read_metrics(run_of(small_run).metrics)
    assert [line["tokens"] for line in lines] == [256 * step for step in range(1, 21)]
    assert {"loss", "lr", "gradient_norm", "tokens_per_second", "memory_bytes", "elapsed_seconds"} <= lines[0].keys()
    assert lines[0]["mfu"] is None  # a CPU's peak is not known
    assert [line["step"] for line in lines if "held_out_loss" in line] == [10, 20]
    seconds = sum(256 / line["tokens_per_second"] for line in lines)
    assert seconds == pytest.approx(lines[-1]["elapsed_seconds"], rel=0.01)
    assert lines[-1]["elapsed_seconds"] < wall_seconds


def test_the_best_checkpoint_is_kept_and_never_replaced_by_a_worse_one(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = iter([3.0, 2.0, 2.5, 2.25, 2.75, 2.6])

    def evaluation(*_: object) -> HeldOutLoss:
        return HeldOutLoss(loss=next(scripted), standard_error=0.0, bits_per_byte=1.0, tokens=1, bytes=1)

    monkeypatch.setattr(loop, "_evaluate", evaluation)
    config = changed(small_run, steps=12, eval_every=2, save_every=2, keep_last=2)
    train(config)
    kept = checkpoint.committed(run_of(config))
    assert [found.step for found in kept] == [4, 10, 12]
    assert kept[-1].read_json("state.json")["best_loss"] == 2.0
    assert checkpoint.find(config.train.out).step == 4


def test_the_best_loss_survives_a_resume(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def scripted(value: float) -> Callable[..., HeldOutLoss]:
        return lambda *_: HeldOutLoss(loss=value, standard_error=0.0, bits_per_byte=1.0, tokens=1, bytes=1)

    monkeypatch.setattr(loop, "_evaluate", scripted(1.0))
    train(changed(small_run, steps=10))
    monkeypatch.setattr(loop, "_evaluate", scripted(2.0))
    train(small_run)
    last = checkpoint.committed(run_of(small_run))[-1]
    assert (last.step, last.held_out_loss) == (20, 2.0)
    assert last.read_json("state.json")["best_loss"] == 1.0
    assert checkpoint.find(small_run.train.out).step == 10


def poisoned(at: set[int], value: float) -> Callable[..., torch.Tensor]:
    """The gradients of some steps, spoiled."""
    real = loop.gradients

    def spoiled(wrapped: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss_sum = real(wrapped, *args, **kwargs)
        return loss_sum * value if kwargs["step"] in at else loss_sum

    return spoiled


def weights_of(config: RunConfig) -> dict[str, torch.Tensor]:
    return checkpoint.committed(run_of(config))[-1].tensors(checkpoint.MODEL)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_batch_is_named_and_never_reaches_the_weights(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    screen, said = Quiet(), []
    screen.say = said.append  # type: ignore[method-assign]
    before = changed(small_run, steps=5, schedule="constant", out=str(tmp_path / "before"))
    train(before)
    monkeypatch.setattr(loop, "gradients", poisoned({5}, value))
    after = changed(small_run, steps=6, schedule="constant")
    train(after, screen)
    assert all(
        torch.equal(left, right)
        for left, right in zip(weights_of(before).values(), weights_of(after).values(), strict=True)
    )
    refused = next(line for line in said if "not applied" in line)
    assert "step 5, tokens 1,280 to 1,536" in refused
    assert read_metrics(run_of(after).metrics)[-1]["skipped"] is True


def test_three_bad_steps_in_a_row_end_the_run_with_its_checkpoint_intact(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "gradients", poisoned({12, 13, 14}, math.nan))
    with pytest.raises(NonFiniteError, match=r"3 of 3 in a row.*last good checkpoint is intact") as raised:
        train(small_run)
    assert raised.value.exit_code == 70
    last = checkpoint.newest_intact(run_of(small_run), print)
    assert last is not None
    assert last.step == 10
    line = read_metrics(run_of(small_run).metrics)[-1]
    assert (line["step"], line["loss"], line["skipped"], line["diverged"]) == (14, "nan", True, True)


def test_a_run_whose_weights_are_no_numbers_says_so_in_its_metrics(small_run: RunConfig) -> None:
    config = changed(small_run, steps=3, warmup_steps=0, log_every=100, eval_every=0, lr=1e300)
    with pytest.raises(NonFiniteError):
        train(config)
    assert read_metrics(run_of(config).metrics)[-1]["diverged"] is True


def test_two_bad_steps_and_a_good_one_go_on(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "gradients", poisoned({3, 4, 6, 7}, math.nan))
    assert train(small_run).step == 20


@pytest.mark.parametrize("spoil", [{"lr": 1e300}, {"weight_decay": 1e300}])
@pytest.mark.parametrize("save_every", [0, 1])
def test_weights_that_are_not_finite_are_never_saved(
    small_run: RunConfig, spoil: dict[str, float], save_every: int
) -> None:
    config = changed(small_run, steps=3, warmup_steps=0, save_every=save_every, **spoil)
    with pytest.raises(NonFiniteError, match="the last good checkpoint is intact"):
        train(config)
    assert checkpoint.committed(run_of(config)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("schedule", "foo"), ("optimizer", "adam"), ("track", "wandbb"), ("source", "text2"), ("mlp", "gelu2")],
)
def test_a_menu_name_is_checked_before_anything_is_made(small_run: RunConfig, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} = '{value}' does not exist"):
        train(changed(small_run, **{name: value}))
    assert not Path(small_run.train.out).exists()


def test_a_batch_that_clearly_does_not_fit_is_refused_at_once(small_run: RunConfig) -> None:
    huge = changed(small_run, batch_size=10_000_000, gradient_accumulation_steps=1)
    with pytest.raises(OutOfMemory, match="lower --batch-size") as raised:
        train(huge)
    assert raised.value.exit_code == 71


def test_a_run_without_a_name_goes_into_runs(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(changed(small_run, steps=1, out="auto")).run == Path("runs/run")


def test_an_infinite_gradient_counts_unless_the_loss_scale_is_being_found() -> None:
    guard = Guard()
    for _ in range(2 * LIMIT_IN_A_ROW):
        assert not guard.allows(loss=2.0, gradient_norm=math.inf, scale=65536.0)
    assert guard.in_a_row == 0
    assert not guard.allows(loss=2.0, gradient_norm=math.inf, scale=0.5)
    assert not guard.allows(loss=math.nan, gradient_norm=1.0, scale=65536.0)
    assert guard.in_a_row == 2
    assert guard.allows(loss=2.0, gradient_norm=1.0, scale=0.5)
    assert guard.in_a_row == 0


def test_minutes_fix_the_number_of_steps_and_leave_the_run_as_it_was(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quillgpt.train.calibrate.MEASURE_SECONDS", 0.05)
    monkeypatch.setattr("quillgpt.train.calibrate.WARMUP_SECONDS", 0.05)
    timed = changed(small_run, minutes=0.01, threads=1, eval_every=0, dropout=0.1, out=str(tmp_path / "timed"))
    steps = train(timed).step
    assert checkpoint.committed(run_of(timed))[-1].read_json("state.json")["steps"] == steps
    assert train(timed).step == steps  # it keeps to it: a second call has nothing left to do
    fixed = changed(timed, minutes=0.0, steps=steps, out=str(tmp_path / "fixed"))
    train(fixed)
    assert losses_of(timed) == losses_of(fixed)


def test_minutes_come_out_about_right(small_run: RunConfig) -> None:
    config = changed(small_run, minutes=0.1, eval_every=0, save_every=0)
    train(config)
    lines = read_metrics(run_of(config).metrics)
    assert 2.0 < lines[-1]["elapsed_seconds"] < 18.0  # asked for 6 seconds, on a machine that does other things too


def test_starting_from_another_runs_weights_keeps_them_and_its_tokenizer(small_run: RunConfig, tmp_path: Path) -> None:
    first = train(small_run)
    second = changed(
        small_run, init=str(first.run), steps=1, lr=0.0, min_lr=0.0, weight_decay=0.0, out=str(tmp_path / "second")
    )
    outcome = train(second)
    assert outcome.held_out == first.held_out


def test_evaluating_only_writes_no_checkpoint(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = train(changed(small_run, eval_only=True))
    assert outcome.step == 0
    assert outcome.held_out.loss == pytest.approx(math.log(257), rel=0.05)
    assert checkpoint.committed(run_of(small_run)) == []


def test_the_debug_recipe_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = changed(load_recipe("debug"), out="runs/debug", steps=150, eval_every=0, dtype="fp32")
    outcome = train(config)
    lines = read_metrics(run_of(config).metrics)
    assert lines[0]["loss"] > 4.5
    assert outcome.held_out.loss < 3.0
    model, tokenizer = checkpoint.load_model(outcome.run)
    assert tokenizer.decode(tokenizer.encode("def f(): ...")) == "def f(): ..."
    assert not model.training
