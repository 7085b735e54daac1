"""Fine-tuning: the weights of another model with a new run's steps, optimizer and schedule; all weights, or LoRA."""

from pathlib import Path

import pytest

from quillgpt import checkpoint
from quillgpt.config import RunConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.evaluate.run import evaluate_only
from quillgpt.training import calibrate
from quillgpt.training.loop import train
from small_runs import changed, column, differing, newest, run_of, tensors_of, weights_of, with_losses

LORA = {"lora_rank": 4, "lora_alpha": 8.0}
STILL = {"lr": 0.0, "min_lr": 0.0, "steps": 1}
"""a step that changes nothing"""


def test_weights_are_the_sources_and_step_and_optimizer_begin_again(
    fine_tuning: RunConfig, messages: list[str]
) -> None:
    before = {path: path.read_bytes() for path in Path("runs/base").rglob("*") if path.is_file()}
    assert train(changed(fine_tuning, **STILL)).step == newest(fine_tuning).step == 1
    assert any("the weights of runs/base/checkpoints/step-000020" in message for message in messages)
    weights = newest(fine_tuning).tensors(checkpoint.MODEL)
    assert differing(weights, weights_of("runs/base")) == []
    optimizer = newest(fine_tuning).tensors(checkpoint.OPTIMIZER)
    assert {float(value) for name, value in optimizer.items() if name.endswith(".step")} == {1.0}
    train(changed(fine_tuning, out="runs/lora", **LORA))
    assert {path: path.read_bytes() for path in Path("runs/base").rglob("*") if path.is_file()} == before


def test_the_schedule_is_the_new_runs_own(fine_tuning: RunConfig) -> None:
    train(changed(fine_tuning, warmup_steps=5, lr=1e-3, min_lr=1e-4))
    rates = column(fine_tuning, "lr")
    assert rates[0] < rates[4] < rates[5] == 1e-3
    assert rates[-1] < 3e-4


def test_a_run_starts_from_a_lora_run_as_from_any_other(lora_tuning: RunConfig, fine_tuning: RunConfig) -> None:
    train(lora_tuning)
    train(changed(fine_tuning, init="runs/lora", **STILL))
    assert differing(newest(fine_tuning).tensors(checkpoint.MODEL), weights_of("runs/lora")) == []


def test_before_its_first_step_a_lora_run_is_its_base_exactly(lora_tuning: RunConfig, fine_tuning: RunConfig) -> None:
    only = {"eval_only": True, "out": "runs/none"}
    at_first, base = (
        evaluate_only(changed(config, **only), Ranks())[1].result.scores for config in (lora_tuning, fine_tuning)
    )
    assert at_first == base
    assert train(lora_tuning).validation.loss < base["loss"]


def test_lora_needs_weights_to_adapt(small_run: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"lora_rank.*init = scratch has no weights to adapt"):
        changed(small_run, **LORA)


def test_other_adapters_do_not_continue_a_run(lora_tuning: RunConfig, fine_tuning: RunConfig) -> None:
    train(changed(lora_tuning, steps=5))
    train(changed(fine_tuning, steps=5))
    changes = [
        (lora_tuning, "lora_rank", 2),
        (lora_tuning, "lora_rank", 0),
        (lora_tuning, "lora_alpha", 4.0),
        (fine_tuning, "lora_rank", 4),
    ]
    for config, name, value in changes:
        before = getattr(config.lora, name)
        with pytest.raises(CheckpointError, match=f"{name} {before} -> {value}"):
            train(changed(config, **{name: value}))


def test_the_best_adapters_are_kept_and_found(lora_tuning: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with_losses(monkeypatch, 3.0, 2.0, 2.5, 2.25)
    train(changed(lora_tuning, steps=8, eval_every=2, save_every=2, keep_last=1))
    assert [found.step for found in checkpoint.committed(run_of(lora_tuning))] == [4, 8]
    assert checkpoint.find("runs/lora").step == 4


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_lora_has_the_losses_of_eager_lora(lora_tuning: RunConfig) -> None:
    eager = changed(lora_tuning, steps=4, eval_every=0, save_every=0)
    compiled = changed(eager, compile="on", compile_backend="eager", out="runs/compiled")
    train(eager)
    train(compiled)
    assert column(compiled, "train_loss") == pytest.approx(column(eager, "train_loss"), rel=1e-5)
    assert tensors_of(compiled).keys() == tensors_of(eager).keys()


def test_minutes_are_measured_with_the_adapters(lora_tuning: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "WARMUP_SECONDS", 0.0)
    monkeypatch.setattr(calibrate, "MEASURE_SECONDS", 0.1)
    train(changed(lora_tuning, minutes=0.005, eval_every=0, save_every=0))
    assert newest(lora_tuning).step >= 1
