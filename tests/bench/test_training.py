"""`quill bench train`: the very steps of a run, and where their time goes."""

import itertools
import json
import time
from pathlib import Path

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.bench import training
from quillgpt.bench.training import PARTS, measure_training
from quillgpt.bench.windows import Plan
from quillgpt.config import RunConfig, updated
from quillgpt.data.loader import BatchLoader
from quillgpt.errors import NonFiniteError
from quillgpt.model.sizes import flops_per_token
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.train import loop, update
from quillgpt.train.loop import train
from quillgpt.train.metrics import Metrics
from quillgpt.train.progress import Quiet

SHORT = Plan(windows=3, seconds=0.02, warmup=0)


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quillgpt.bench.machine.SQUARES", {"cpu": (64,)})
    monkeypatch.setattr("quillgpt.bench.machine.PEAK_SECONDS", 0.01)


def changed(config: RunConfig, **settings: object) -> RunConfig:
    return updated(config, settings, where="test")


def test_its_steps_are_bit_for_bit_those_of_a_run(small_run: RunConfig, tmp_path: Path) -> None:
    config = changed(small_run, steps=6, dropout=0.2, eval_every=0)
    with training._opened(config, tmp_path / "bench", Quiet()) as side:
        side(4)
        side(2)
        measured = {name: tensor.clone() for name, tensor in side._parts.model.state_dict().items()}
        lines = read_metrics(tmp_path / "bench" / "run" / "metrics.jsonl")
    outcome = train(config)
    saved = checkpoint.newest_intact(RunDirectory(outcome.run), print)
    assert saved is not None
    trained = saved.tensors(checkpoint.MODEL)
    for name, tensor in trained.items():
        assert torch.equal(measured[name], tensor), name
    written = read_metrics(outcome.run / "metrics.jsonl")
    figures = ("step", "tokens", "loss", "mean_loss", "lr", "gradient_norm")
    assert [[line[name] for name in figures] for line in lines] == [
        [line[name] for name in figures] for line in written
    ]


def test_every_figure_is_told_and_adds_up(small_run: RunConfig, tmp_path: Path) -> None:
    (found,) = measure_training([("small", small_run)], SHORT, tmp_path, Quiet())
    assert found.tokens_per_step == 2 * 4 * 32
    assert all(window.amounts["tokens"] == window.repetitions * 256 for window in found.windows)
    assert found.flops_per_token == flops_per_token(small_run.model)
    steps = sum(window.repetitions for window in found.windows)
    seconds = sum(window.seconds for window in found.windows)
    assert sum(found.parts.values()) == pytest.approx(seconds / steps)
    assert found.parts.keys() == {*PARTS, "other"}
    assert all(seconds > 0 for seconds in found.parts.values())
    assert found.parts["other"] < 0.5 * sum(found.parts.values())
    assert (found.compile_seconds, found.profile) == (0.0, None)
    assert found.memory_bytes > 1e7


@pytest.mark.parametrize(
    ("owner", "name", "part"),
    [
        (BatchLoader, "batch", "data"),
        (loop, "apply_update", "optimizer"),
        (Metrics, "line", "logging"),
        (update.TrainingStep, "forward", "forward"),
        (loop, "_agree", "backward"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_slow_part_is_told_as_that_part(
    owner: object, name: str, part: str, small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(owner, name)

    def slow(*arguments: object, **settings: object) -> object:
        time.sleep(0.08)
        return real(*arguments, **settings)

    monkeypatch.setattr(owner, name, slow)
    config = changed(small_run, gradient_accumulation_steps=1)
    (found,) = measure_training([("slow", config)], Plan(windows=2, seconds=0.02, warmup=0), tmp_path, Quiet())
    assert found.parts[part] >= 0.08
    assert max(found.parts, key=lambda key: found.parts[key]) == part


def test_the_backward_pass_is_the_gradients_without_the_forward_pass() -> None:
    seconds = {"data": 1.0, "gradients": 6.0, "forward": 2.0, "optimizer": 0.5, "logging": 0.25}
    parts = {"data": 1.0, "forward": 2.0, "backward": 4.0, "optimizer": 0.5, "logging": 0.25, "other": 0.25}
    assert training._told_apart(seconds, 8.0) == parts


def test_the_sides_take_turns_and_each_has_its_own_settings(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = loop.one_step
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: done.append(str(threads)))
    monkeypatch.setattr(training, "one_step", lambda *words, **named: (done.append("step"), real(*words, **named))[1])
    wide = changed(small_run, n_embd=64, dtype="bf16", threads=2)
    small, other = measure_training([("small", small_run), ("wide", wide)], SHORT, tmp_path, Quiet())
    assert (small.choices.dtype, other.choices.dtype) == ("fp32", "bf16")
    assert small.parameters < other.parameters
    assert (small.peak.dtype, other.peak.dtype) == ("fp32", "bf16")
    before_steps = [word for word, after in itertools.pairwise(done) if after == "step" != word]
    turns = [word for word, _ in itertools.groupby(before_steps)]
    assert turns == ["1", "2", "1", "2", "1", "2"]  # both warm up; then a b, b a, a b


def test_what_a_measurement_has_no_use_for_is_left_out(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise AssertionError("minutes were measured")

    monkeypatch.setattr("quillgpt.train.setup.steps_for_minutes", refused)
    config = changed(small_run, minutes=5.0, track="wandb", eval_tasks="piqa", out=str(tmp_path / "kept"))
    (found,) = measure_training([("small", config)], Plan(windows=1, seconds=0.01, warmup=0), tmp_path, Quiet())
    assert found.windows
    assert not list(RunDirectory(tmp_path / "0" / "run").checkpoints.glob("*"))
    assert not (tmp_path / "kept").exists()


def test_a_loss_that_is_none_ends_it(small_run: RunConfig, tmp_path: Path) -> None:
    config = changed(small_run, lr=1e30, warmup_steps=0, gradient_clip=0.0)
    with pytest.raises(NonFiniteError, match="3 of 3 in a row"):
        measure_training([("small", config)], Plan(windows=1, seconds=1.0, warmup=0), tmp_path, Quiet())


def test_a_profile_has_the_matrix_products_and_a_trace_with_the_parts(
    small_run: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    trace = tmp_path / "trace.json"
    (found,) = measure_training([("small", small_run)], SHORT, tmp_path, Quiet(), traces=[trace])
    assert found.profile is not None
    operators = found.profile.operators
    assert len(operators) == 10
    assert [one.seconds for one in operators] == sorted((one.seconds for one in operators), reverse=True)
    assert 0 < sum(one.share for one in operators) <= 1
    assert {"aten::mm", "aten::addmm"} & {one.name for one in operators}
    events = json.loads(trace.read_text())["traceEvents"]
    assert {"data", "forward", "optimizer", "logging"} <= {event.get("name") for event in events}
    assert capfd.readouterr().err == ""


def test_compiling_is_apart_and_of_a_machine_that_never_did(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: object) -> str:
        time.sleep(0.05)
        return ""

    monkeypatch.setattr(update, "_compile_failure", slow)
    config = changed(small_run, compile="on", compile_backend="eager")
    (found,) = measure_training([("small", config)], Plan(windows=1, seconds=0.01, warmup=0), tmp_path, Quiet())
    assert 0.05 <= found.compile_seconds < 5
