"""`quill bench train`: the steps of a run, and where their time goes."""

import itertools
import json
import time
from pathlib import Path

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.config import RunConfig, updated
from quillgpt.data.loader import BatchLoader
from quillgpt.errors import NonFiniteError
from quillgpt.lab.bench import training
from quillgpt.lab.bench.measure import Plan
from quillgpt.lab.bench.training import PARTS, measure_training, separate_parts
from quillgpt.model.sizes import flops_per_token
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.training import loop
from quillgpt.training import step as update
from quillgpt.training.loop import train
from quillgpt.training.metrics import Metrics
from quillgpt.training.screen import Screen

SHORT = Plan(windows=3, seconds=0.02, warmup=0)
ONE = Plan(windows=1, seconds=0.01, warmup=0)


def changed(config: RunConfig, **settings: object) -> RunConfig:
    return updated(config, settings, where="test")


def test_its_steps_equal_those_of_a_run_bit_for_bit(small_run: RunConfig, tmp_path: Path) -> None:
    config = changed(small_run, steps=6, dropout=0.2, eval_every=0)
    with training.open_side(config, tmp_path / "bench", Screen()) as side:
        side(4)
        side(2)
        measured = {name: tensor.clone() for name, tensor in side.parts.model.state_dict().items()}
        lines = read_metrics(tmp_path / "bench" / "run" / "metrics.jsonl")
    outcome = train(config)
    saved = checkpoint.latest_intact(RunDirectory(outcome.run))
    assert saved is not None
    trained = saved.tensors(checkpoint.MODEL)
    assert trained.keys() <= measured.keys()
    assert [name for name, tensor in trained.items() if not torch.equal(measured[name], tensor)] == []
    volatile = {"elapsed_seconds", "tokens_per_second", "memory_bytes", "mfu"}
    for ours, theirs in zip(lines, read_metrics(outcome.run / "metrics.jsonl"), strict=True):
        assert ours.keys() <= theirs.keys()  # the last line of the run has an evaluation
        assert [name for name in ours.keys() - volatile if ours[name] != theirs[name]] == []


def test_every_figure_adds_up(small_run: RunConfig, tmp_path: Path) -> None:
    (found,) = measure_training([("small", small_run)], SHORT, tmp_path, Screen())
    assert found.tokens_per_step == 2 * 4 * 32
    assert all(window.amounts["tokens"] == window.repetitions * 256 for window in found.windows)
    speeds = [window.amounts["tokens"] / window.seconds for window in found.windows]
    assert found.tokens_per_second.values == pytest.approx(speeds)
    assert found.step_seconds.values == pytest.approx([256 / speed for speed in speeds])
    assert found.flops_per_token == flops_per_token(small_run.model)
    steps = sum(window.repetitions for window in found.windows)
    seconds = sum(window.seconds for window in found.windows)
    assert sum(found.part_seconds.values()) == pytest.approx(seconds / steps)
    assert found.part_seconds.keys() == {*PARTS, "other"}
    assert all(seconds > 0 for seconds in found.part_seconds.values())
    assert found.part_seconds["other"] < 0.2 * sum(found.part_seconds.values())
    assert (found.compile_seconds, found.profile) == (None, None)
    assert found.memory_bytes > 1e7


def test_a_slow_part_is_reported_as_that_part(small_run: RunConfig, tmp_path: Path) -> None:
    config = changed(small_run, gradient_accumulation_steps=1)
    cases = [
        (BatchLoader, "batch", "data"),
        (torch.optim.AdamW, "step", "optimizer"),
        (Metrics, "line", "logging"),
        (update.ModelWithLoss, "forward", "forward"),
        (loop, "_agree", "backward"),
        (torch.Tensor, "backward", "backward"),
    ]
    for number, (owner, name, part) in enumerate(cases):
        real = getattr(owner, name)

        def slow(*arguments: object, real: object = real, **settings: object) -> object:
            time.sleep(0.08)
            return real(*arguments, **settings)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, slow)
            (found,) = measure_training([("slow", config)], ONE, tmp_path / str(number), Screen())
        assert found.part_seconds[part] >= 0.08, name
        assert max(found.part_seconds, key=lambda key: found.part_seconds[key]) == part, name


def test_the_backward_pass_is_what_is_left_of_a_step() -> None:
    seconds = {"step": 9.5, "data": 1.0, "forward": 2.0, "optimizer": 0.5, "logging": 0.25}
    parts = {"data": 1.0, "forward": 2.0, "backward": 6.0, "optimizer": 0.5, "logging": 0.25, "other": 0.25}
    assert separate_parts(seconds, 10.0) == parts


def test_timing_leaves_the_objects_of_the_run_as_they_were(small_run: RunConfig, tmp_path: Path) -> None:
    with training.open_side(small_run, tmp_path / "bench", Screen()) as side:
        side(1)
        assert not {"batch", "step", "zero_grad"} & {*vars(side.parts.loader), *vars(side.parts.optimizer)}


def test_sides_take_turns_and_each_has_its_own_settings(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = loop.one_step
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: done.append(str(threads)))
    monkeypatch.setattr(training, "one_step", lambda *words, **named: (done.append("step"), real(*words, **named))[1])
    wide = changed(small_run, n_embd=64, dtype="bf16", threads=2)
    small, other = measure_training([("small", small_run), ("wide", wide)], SHORT, tmp_path, Screen())
    assert (small.runtime.dtype, other.runtime.dtype) == ("fp32", "bf16")
    assert small.parameters < other.parameters
    assert (small.peak.dtype, other.peak.dtype) == ("fp32", "bf16")
    before_steps = [word for word, after in itertools.pairwise(done) if after == "step" != word]
    turns = [word for word, _ in itertools.groupby(before_steps)]
    assert turns == ["1", "2", "1", "2", "1", "2"]  # both warm up; then a b, b a, a b


def test_it_measures_no_minutes_and_leaves_no_run(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise AssertionError("minutes were measured")

    monkeypatch.setattr("quillgpt.training.calibrate.steps_for_minutes", refused)
    config = changed(small_run, minutes=5.0, track="wandb", eval_tasks="piqa", out=str(tmp_path / "kept"))
    (found,) = measure_training([("small", config)], ONE, tmp_path, Screen())
    assert found.windows
    assert not list(RunDirectory(tmp_path / "0" / "run").checkpoints.glob("*"))
    assert not (tmp_path / "kept").exists()


def test_a_non_finite_loss_ends_it(small_run: RunConfig, tmp_path: Path) -> None:
    config = changed(small_run, lr=1e30, warmup_steps=0, gradient_clip=0.0)
    with pytest.raises(NonFiniteError, match="3 of 3 in a row"):
        measure_training([("small", config)], Plan(windows=1, seconds=1.0, warmup=0), tmp_path, Screen())


def test_a_profile_has_the_matrix_products_and_a_trace_with_the_parts(
    small_run: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    trace = tmp_path / "trace.json"
    (found,) = measure_training([("small", small_run)], SHORT, tmp_path, Screen(), traces=[trace])
    assert found.profile is not None
    operators = found.profile.operators
    assert len(operators) == 10
    assert [one.seconds for one in operators] == sorted((one.seconds for one in operators), reverse=True)
    assert 0 < sum(one.share for one in operators) <= 1
    assert {"aten::mm", "aten::addmm"} & {one.name for one in operators}
    events = json.loads(trace.read_text())["traceEvents"]
    assert {"data", "forward", "optimizer", "logging", "step"} <= {event.get("name") for event in events}
    assert capfd.readouterr().err == ""


def test_compiling_is_timed_without_an_earlier_cache(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quillgpt.training.calibrate._compile_failure", lambda *_: (time.sleep(0.05), "")[1])
    config = changed(small_run, compile="on", compile_backend="eager")
    (found,) = measure_training([("small", config)], ONE, tmp_path, Screen())
    assert found.compile_seconds is not None
    assert 0.05 <= found.compile_seconds < 5
