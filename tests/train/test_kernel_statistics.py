"""What a run tells of the range its attention works in: right numbers, a warning in time, and no trace in the run."""

import contextlib
import itertools
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from quillgpt import checkpoint
from quillgpt.config import ModelConfig, RunConfig, updated
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.self_attention import SelfAttention
from quillgpt.run_dir import RunDirectory, append_metrics, config_toml, read_metrics
from quillgpt.train import kernel_statistics
from quillgpt.train.kernel_statistics import KernelMonitor, is_watched, underflow_threshold
from quillgpt.train.loop import train
from quillgpt.train.metrics import tracked
from quillgpt.train.progress import Quiet
from quillgpt.train.resolve import Choices

WATCHED = [name for name in ATTENTION if is_watched(name)]
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 12, "vocab_size": 67}
CHOICES = Choices(
    device="cpu",
    dtype="fp32",
    threads=1,
    compile=False,
    compile_backend="inductor",
    matmul_precision="highest",
    dist_backend="gloo",
    rows=4,
    batch_size=2,
    world_size=1,
)


def model_of(attention: str, *, scale: float = 1.0, **settings: Any) -> GPT:
    """A tiny model in float64 whose queries and keys are larger by `scale`."""
    torch.manual_seed(3)
    model = GPT(ModelConfig(attention=attention, **(SHAPE | settings))).double()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.mul_(scale)
    return model


def tokens() -> Tensor:
    return torch.randint(67, (2, 12), generator=torch.Generator().manual_seed(2))


def monitor_of(model: GPT, said: list[str] | None = None, **settings: Any) -> KernelMonitor:
    return KernelMonitor(
        **(
            {"model": model, "choices": CHOICES, "is_first": True, "say": [].append if said is None else said.append}
            | settings
        )
    )


def seen_by_the_attention(model: GPT, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The queries and keys that each layer's attention is called with."""
    seen = []

    def recorded(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def record(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
            seen.append((query.detach(), key.detach()))
            return attend(query, key, value, dropout=dropout)

        return record

    attentions = [module for module in model.modules() if isinstance(module, SelfAttention)]
    originals = [attention.attend for attention in attentions]
    for attention, attend in zip(attentions, originals, strict=True):
        attention.attend = recorded(attend)
    model(inputs)
    for attention, attend in zip(attentions, originals, strict=True):
        attention.attend = attend
    return seen


def weight(name: str, query: list[float], key: list[float], visible: int) -> float:
    """One weight of an attention that does not divide by a sum, by its formula."""
    score = math.fsum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(len(query))
    x = argument(query, key)
    if name == "gaussian":
        return math.exp(-x)
    if name.startswith("gaussian-poly-"):
        degree = int(name.rpartition("-")[2])
        return (1 - x / degree) ** degree
    activations = {
        "relu": max(score, 0.0),
        "gelu": score * 0.5 * (1 + math.erf(score / math.sqrt(2))),
        "relu2": max(score, 0.0) ** 2,
        "silu": score / (1 + math.exp(-score)),
        "tanh": math.tanh(score),
        "sigmoid": 1 / (1 + math.exp(-score)),
        "identity": score,
        "softplus": math.log1p(math.exp(score)),
    }
    return activations[name.removeprefix("pointwise-")] / visible


def argument(query: list[float], key: list[float]) -> float:
    """x = |q - k|^2 / (2 sqrt(D))."""
    return math.fsum((q - k) ** 2 for q, k in zip(query, key, strict=True)) / (2 * math.sqrt(len(query)))


def by_brute_force(name: str, query: Tensor, key: Tensor) -> dict[str, float]:
    """A layer's statistics, pair by pair; query, key: (H, T, D)."""
    xs, sizes, sums = [], [], []
    for head_query, head_key in zip(query.tolist(), key.tolist(), strict=True):
        for i, one_query in enumerate(head_query):
            visible = head_key[: i + 1]
            xs += [argument(one_query, one_key) for one_key in visible]
            sizes += [
                abs(math.fsum(q * k for q, k in zip(one_query, one_key, strict=True))) / math.sqrt(len(one_query))
                for one_key in visible
            ]
            if name != "gaussian-normalized":
                sums.append(math.fsum(weight(name, one_query, one_key, i + 1) for one_key in visible))
    found = {}
    if name.startswith("gaussian"):
        found = {"kernel_x_mean": math.fsum(xs) / len(xs), "kernel_x_max": max(xs)}
    if name in ("gaussian", "gaussian-normalized"):
        found["kernel_x_underflows"] = sum(x > 126 * math.log(2) for x in xs) / len(xs)
    if name.startswith("gaussian-poly-"):
        degree = int(name.rpartition("-")[2])
        found["kernel_x_above_n"] = sum(x > degree for x in xs) / len(xs)
        found["kernel_x_above_2n"] = sum(abs(1 - x / degree) > 1 for x in xs) / len(xs)
    if name.startswith("pointwise"):
        found = {"score_mean": math.fsum(sizes) / len(sizes), "score_max": max(sizes)}
    if sums:
        found |= {"weight_sum_mean": math.fsum(sums) / len(sums), "weight_sum_max": max(map(abs, sums))}
    return found


@pytest.mark.parametrize("block", [{}, {"position": "rotary", "qk_norm": True}], ids=["gpt2", "modern"])
@pytest.mark.parametrize("scale", [28.0, 60.0])
@pytest.mark.parametrize("name", WATCHED)
def test_the_statistics_are_those_of_every_pair_by_itself(name: str, scale: float, block: dict[str, Any]) -> None:
    model = model_of(name, scale=scale, **block)

    found = monitor_of(model).look(tokens(), 1)

    expected = [by_brute_force(name, query[0], key[0]) for query, key in seen_by_the_attention(model, tokens()[:1])]
    assert found.keys() == expected[0].keys()
    for statistic, layers in found.items():
        assert layers == pytest.approx([layer[statistic] for layer in expected], rel=1e-6), statistic


def test_the_ranges_of_that_test_are_reached() -> None:
    """Otherwise it would compare zeros."""
    gaussian = monitor_of(model_of("gaussian", scale=60.0)).look(tokens(), 1)
    polynomial = monitor_of(model_of("gaussian-poly-8", scale=28.0)).look(tokens(), 1)
    for share in (*gaussian["kernel_x_underflows"], *polynomial["kernel_x_above_n"], *polynomial["kernel_x_above_2n"]):
        assert 0.0 < share < 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gaussian_beyond_the_threshold_is_below_the_smallest_normal_number(dtype: torch.dtype) -> None:
    threshold = underflow_threshold(dtype)
    assert math.exp(-threshold * 1.0001) < torch.finfo(dtype).tiny < math.exp(-threshold * 0.9999)
    assert threshold == pytest.approx(9.704 if dtype == torch.float16 else 87.336, abs=1e-3)


def test_the_unwatched_are_those_whose_weights_do_not_depend_on_the_size_of_their_scores() -> None:
    assert set(ATTENTION) - set(WATCHED) == {"softmax", "explicit", "power"}


def test_power_softmax_has_no_range_to_leave() -> None:
    """Scores a thousand times as large give the same weights."""
    query, key, value = torch.randn(3, 1, 2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mixed = [ATTENTION["power"](query * scale, key, value, dropout=0.0) for scale in (1.0, 1000.0)]
    torch.testing.assert_close(mixed[0], mixed[1], rtol=1e-4, atol=1e-5)


def test_16_bits_change_the_statistics_by_their_rounding_only() -> None:
    model = model_of("gaussian-poly-8", scale=10.0).float()
    exact = monitor_of(model).look(tokens(), 1)
    rounded = monitor_of(model, choices=Choices(**(vars(CHOICES) | {"dtype": "bf16"}))).look(tokens(), 1)
    assert rounded["kernel_x_mean"] == pytest.approx(exact["kernel_x_mean"], rel=0.01)
    assert rounded["kernel_x_mean"] != exact["kernel_x_mean"]


# The warning


POLYNOMIALS = [name for name in ATTENTION if name.startswith("gaussian-poly-")]


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_a_fresh_model_is_not_warned_of_and_one_with_large_weights_is(name: str) -> None:
    said: list[str] = []
    monitor_of(model_of(name), said).look(tokens(), 1)
    assert said == []
    monitor_of(model_of(name, scale=40.0), said).look(tokens(), 7)
    assert len(said) == 1
    degree = int(name.rpartition("-")[2])
    assert said[0].startswith("step 7, layer ")
    assert f"above 2N = {2 * degree} for " in said[0]
    assert "lower --lr, add --qk-norm, or take a larger N" in said[0]
    assert said[0].isprintable()


def test_the_warning_names_the_layer_and_the_share_of_the_worst() -> None:
    said: list[str] = []
    model = model_of("gaussian-poly-2")
    with torch.no_grad():
        model.blocks[1].attention.qkv.weight.mul_(30.0)
    found = monitor_of(model, said).look(tokens(), 5)
    assert found["kernel_x_above_2n"][0] == 0.0
    assert "layer 1: " in said[0]
    assert f"for {100 * found['kernel_x_above_2n'][1]:.3g} % of the pairs" in said[0]
    assert f"(largest {found['kernel_x_max'][1]:.3g})" in said[0]


def test_a_warning_is_repeated_only_when_it_becomes_much_worse() -> None:
    said: list[str] = []
    model = model_of("gaussian-poly-2")
    monitor = monitor_of(model, said)
    told = []
    for step in range(60):
        with torch.no_grad():
            model.blocks[0].attention.qkv.weight.mul_(1.1)
        before = len(said)
        share = max(monitor.look(tokens(), step)["kernel_x_above_2n"])
        told += [share] if len(said) > before else []
    assert 1 < len(told) < 4
    assert all(later >= kernel_statistics.MUCH_WORSE * earlier for earlier, later in itertools.pairwise(told))


def test_with_qk_norm_the_advice_is_an_n_that_cannot_be_left() -> None:
    said: list[str] = []
    monitor_of(model_of("gaussian-poly-2", scale=1e6, qk_norm=True, n_embd=64), said).look(tokens(), 1)  # D = 32
    assert said[0].endswith("with qk_norm gaussian-poly-6 cannot get there")
    safe = monitor_of(model_of("gaussian-poly-6", scale=1e6, qk_norm=True, n_embd=64), said)
    assert safe.look(tokens(), 1)["kernel_x_above_2n"] == [0.0, 0.0]
    assert len(said) == 1


def test_a_run_warns_on_the_screen(small_run: RunConfig) -> None:
    screen, said = Quiet(), []
    screen.say = said.append  # type: ignore[method-assign]
    config = changed(small_run, attention="gaussian-poly-2", lr=0.5, warmup_steps=0, steps=12)
    train(config, screen)
    lines = read_metrics(RunDirectory(Path(config.train.out)).metrics)
    warned = next(line for line in lines if max(line["kernel_x_above_2n"]) > 0)
    assert next(text for text in said if "2N = 4" in text).startswith(f"step {warned['step']}, layer ")


# No trace


def changed(config: RunConfig, **settings: Any) -> RunConfig:
    return updated(config, settings, where="test")


def trace_of(config: RunConfig) -> tuple[list[tuple[str, str]], dict[str, Tensor]]:
    """Losses and gradient norms to the bit, and the tensors of the last checkpoint."""
    run = RunDirectory(Path(config.train.out))
    saved = checkpoint.committed(run)[-1]
    tensors = saved.tensors(checkpoint.MODEL) | saved.tensors(checkpoint.OPTIMIZER)
    return [(line["loss"].hex(), line["gradient_norm"].hex()) for line in read_metrics(run.metrics)], tensors


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before, nothing left behind."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


RUNS = {
    "eager with dropout": {"dropout": 0.2},
    "bf16 with dropout": {"dropout": 0.2, "dtype": "bf16"},
    "compiled with dropout": {"dropout": 0.2, "compile": "on", "compile_backend": "aot_eager"},
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("name", "kind"), [*(("gaussian-poly-2", kind) for kind in RUNS), ("pointwise-relu", "bf16 with dropout")]
)
def test_a_run_that_is_looked_at_is_the_same_to_the_bit(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    watched = changed(small_run, attention=name, steps=6, eval_every=0, **RUNS[kind])
    unwatched = changed(watched, out=str(tmp_path / "unwatched"))
    train(watched)
    graphs = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(KernelMonitor, "look", lambda *_: {})
    train(unwatched)
    assert counters["stats"]["unique_graphs"] == graphs == (1 if "compiled" in kind else 0)
    (ours, our_tensors), (theirs, their_tensors) = trace_of(watched), trace_of(unwatched)
    assert ours == theirs
    assert all(torch.equal(our_tensors[key], their_tensors[key]) for key in their_tensors)
    assert "weight_sum_max" in read_metrics(RunDirectory(Path(watched.train.out)).metrics)[-1]


def test_a_look_draws_no_random_number_and_leaves_the_model_as_it_was() -> None:
    model = model_of("gaussian", dropout=0.5)
    before = torch.get_rng_state()
    first = monitor_of(model).look(tokens(), 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert monitor_of(model).look(tokens(), 2) == first


def test_a_look_keeps_nothing_for_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gaussian")
    remembers = []
    hidden = model.hidden

    def spied(inputs: Tensor) -> Tensor:
        remembers.append((torch.is_grad_enabled(), model.training))
        return hidden(inputs)

    monkeypatch.setattr(model, "hidden", spied)
    monitor_of(model).look(tokens(), 1)
    assert remembers == [(False, False)]


def test_only_the_first_rank_looks_and_only_where_there_is_something_to_see() -> None:
    model = model_of("gaussian")
    model.hidden = None  # type: ignore[assignment]
    assert monitor_of(model, is_first=False).look(tokens(), 1) == {}
    softmax = model_of("softmax")
    softmax.hidden = None  # type: ignore[assignment]
    assert monitor_of(softmax).look(tokens(), 1) == {}


def test_a_long_sequence_is_looked_at_in_its_first_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gaussian", scale=20.0)
    short = monitor_of(model).look(tokens()[:, :5], 1)
    monkeypatch.setattr(kernel_statistics, "LONGEST_LOOK", 5)
    assert monitor_of(model).look(tokens(), 1) == short


PATIENCE_SECONDS = 180  # for what takes 7 on an idle machine

TWO_RANKS = """
import os, sys
from pathlib import Path
from quillgpt.config import RunConfig, updated
from quillgpt.recipes import read_toml
from quillgpt.train.kernel_statistics import KernelMonitor
from quillgpt.train.loop import train

config = updated(RunConfig(), read_toml(Path(sys.argv[1])), where="test")
train(updated(config, {"out": sys.argv[2] + "/watched"}, where="test"))
KernelMonitor.look = lambda *_: {}
os.environ["MASTER_PORT"] = sys.argv[3]
train(updated(config, {"out": sys.argv[2] + "/unwatched"}, where="test"))
"""


@contextlib.contextmanager
def ended_with_the_block(command: list[str], variables: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A process with these variables besides, and one thread."""
    variables = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_two_ranks_that_are_looked_at_are_the_same_run_to_the_bit(small_run: RunConfig, tmp_path: Path) -> None:
    config = changed(small_run, attention="gaussian-poly-4", steps=4, dropout=0.1, save_every=0, eval_every=0)
    (tmp_path / "recipe.toml").write_text(config_toml(config))
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        ports = [str(listener.getsockname()[1]) for listener in (first, second)]
    command = [sys.executable, "-c", TWO_RANKS, str(tmp_path / "recipe.toml"), str(tmp_path), ports[1]]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ports[0]}
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(ended_with_the_block(command, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}))
            for rank in range(2)
        ]
        errors = [process.communicate(timeout=PATIENCE_SECONDS)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    watched, unwatched = (changed(config, out=str(tmp_path / name)) for name in ("watched", "unwatched"))
    assert trace_of(watched)[0] == trace_of(unwatched)[0]
    lines = read_metrics(RunDirectory(Path(watched.train.out)).metrics)
    assert [len(line["kernel_x_max"]) for line in lines] == [2, 2, 2, 2]


# In the files


def test_every_logged_line_has_them_and_a_resumed_run_the_same(small_run: RunConfig, tmp_path: Path) -> None:
    config = changed(small_run, attention="gaussian-poly-2", log_every=3, schedule="constant")
    train(changed(config, steps=10))
    train(config)
    whole = changed(config, out=str(tmp_path / "whole"))
    train(whole)
    lines, of_whole = (read_metrics(RunDirectory(Path(run.train.out)).metrics) for run in (config, whole))
    assert [line["step"] for line in lines] == [3, 6, 9, 10, 12, 15, 18, 20]
    for line, other in zip(lines, of_whole, strict=True):
        assert line["kernel_x_mean"] == other["kernel_x_mean"]
        assert len(line["kernel_x_mean"]) == 2


def test_a_softmax_run_has_the_lines_it_always_had(small_run: RunConfig) -> None:
    train(changed(small_run, steps=1))
    (line,) = read_metrics(RunDirectory(Path(small_run.train.out)).metrics)
    assert not any(isinstance(value, list) for value in line.values())


def test_weights_that_are_not_finite_make_a_line_all_the_same(tmp_path: Path) -> None:
    model = model_of("gaussian-poly-2")
    with torch.no_grad():
        model.blocks[1].attention.qkv.weight.fill_(math.inf)
    found = monitor_of(model).look(tokens(), 1)
    assert append_metrics(tmp_path / "metrics.jsonl", {"step": 1, **found})
    (line,) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line["kernel_x_mean"][1] in ("nan", "inf")
    assert isinstance(line["kernel_x_mean"][0], float)


def test_trackers_get_a_number_for_each_layer() -> None:
    line = {"step": 3, "loss": 2.0, "mfu": None, "skipped": True, "kernel_x_max": [1.5, math.nan, 2.5]}
    assert tracked(line) == {"loss": 2.0, "skipped": 1.0, "kernel_x_max/layer_0": 1.5, "kernel_x_max/layer_2": 2.5}


def test_every_statistic_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    for name in WATCHED:
        for statistic in monitor_of(model_of(name)).look(tokens(), 1):
            assert f"`{statistic}`" in page, statistic
