"""The range that an attention works in during training: right numbers, a warning in time, and no trace in the run."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from quillgpt.config import ModelConfig, RunConfig
from quillgpt.model.attention import ATTENTION, find_attention
from quillgpt.model.gpt import GPT, SelfAttention
from quillgpt.run_dir import append_metrics
from quillgpt.training import attention_stats
from quillgpt.training.attention_stats import AttentionMonitor, underflow_threshold
from quillgpt.training.loop import train
from small_runs import RUNTIME, assert_same_run, changed, column, lines_of

MONITORED = [name for name, entry in ATTENTION.items() if entry.monitored]
POLYNOMIALS = [name for name, entry in ATTENTION.items() if entry.degree]
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 12, "vocab_size": 67}
BLOCKS: dict[str, dict[str, Any]] = {"gpt2": {}, "modern": {"position": "rotary", "qk_norm": True}}


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


def monitor_of(model: GPT, *, dtype: str = "fp32", is_main_process: bool = True) -> AttentionMonitor:
    return AttentionMonitor(model=model, runtime=replace(RUNTIME, dtype=dtype), is_main_process=is_main_process)


def measure(model: GPT, step: int = 1, **settings: Any) -> dict[str, list[float]]:
    return monitor_of(model, **settings).measure(tokens(), step)


def queries_and_keys(model: GPT, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each layer's attention is called with."""
    seen = []

    def recording(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def record(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
            seen.append((query.detach(), key.detach()))
            return attend(query, key, value, dropout=dropout)

        return record

    with pytest.MonkeyPatch.context() as patch:
        for module in model.modules():
            if isinstance(module, SelfAttention):
                patch.setattr(module, "attention_function", recording(module.attention_function))
        model(inputs)
    return seen


# The numbers, against formulas pair by pair


def score(query: list[float], key: list[float]) -> float:
    return math.fsum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(len(query))


def argument(query: list[float], key: list[float]) -> float:
    """x = |q - k|^2 / (2 sqrt(D))."""
    return math.fsum((q - k) ** 2 for q, k in zip(query, key, strict=True)) / (2 * math.sqrt(len(query)))


ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "relu": lambda s: max(s, 0.0),
    "gelu": lambda s: s * 0.5 * (1 + math.erf(s / math.sqrt(2))),
    "relu2": lambda s: max(s, 0.0) ** 2,
    "silu": lambda s: s / (1 + math.exp(-s)),
    "tanh": math.tanh,
    "sigmoid": lambda s: 1 / (1 + math.exp(-s)),
    "identity": lambda s: s,
    "softplus": lambda s: math.log1p(math.exp(s)),
}


def weight(name: str, query: list[float], key: list[float], visible: int) -> float:
    """One weight of an attention that does not divide by a sum."""
    if name == "gaussian":
        return math.exp(-argument(query, key))
    if name.startswith("gaussian-poly-"):
        degree = int(name.rpartition("-")[2])
        return (1 - argument(query, key) / degree) ** degree
    return ACTIVATIONS[name.removeprefix("pointwise-")](score(query, key)) / visible


def expected_of_layer(name: str, query: Tensor, key: Tensor) -> dict[str, float]:
    """A layer's statistics by loops over all visible pairs; query, key: (H, T, D)."""
    heads = list(zip(query.tolist(), key.tolist(), strict=True))
    pairs = [(q, k) for queries, keys in heads for i, q in enumerate(queries) for k in keys[: i + 1]]
    if name.startswith("pointwise"):
        sizes = [abs(score(*pair)) for pair in pairs]
        found = {"score_mean": math.fsum(sizes) / len(sizes), "score_max": max(sizes)}
    else:
        xs = [argument(*pair) for pair in pairs]
        found = {"kernel_x_mean": math.fsum(xs) / len(xs), "kernel_x_max": max(xs)}
        if name.startswith("gaussian-poly-"):
            degree = int(name.rpartition("-")[2])
            found["kernel_x_above_n"] = sum(x > degree for x in xs) / len(xs)
            found["kernel_x_above_2n"] = sum(abs(1 - x / degree) > 1 for x in xs) / len(xs)
        else:
            found["kernel_x_underflows"] = sum(x > 126 * math.log(2) for x in xs) / len(xs)
    if name != "gaussian-normalized":
        sums = [
            math.fsum(weight(name, q, k, i + 1) for k in keys[: i + 1])
            for queries, keys in heads
            for i, q in enumerate(queries)
        ]
        found |= {"weight_sum_mean": math.fsum(sums) / len(sums), "weight_sum_max": max(map(abs, sums))}
    return found


def test_the_statistics_are_those_of_loops_over_all_pairs() -> None:
    wrong = []
    for name, scale, block in itertools.product(MONITORED, (28.0, 60.0), BLOCKS):
        model = model_of(name, scale=scale, **BLOCKS[block])
        found = measure(model)
        expected = [expected_of_layer(name, query[0], key[0]) for query, key in queries_and_keys(model, tokens()[:1])]
        assert found.keys() == expected[0].keys(), name
        for statistic, layers in found.items():
            if layers != pytest.approx([layer[statistic] for layer in expected], rel=1e-6):
                wrong.append((name, scale, block, statistic))
    assert wrong == []


def test_the_ranges_of_that_test_are_reached() -> None:
    """Otherwise it would compare zeros."""
    gaussian = measure(model_of("gaussian", scale=60.0))
    polynomial = measure(model_of("gaussian-poly-8", scale=28.0))
    for share in (*gaussian["kernel_x_underflows"], *polynomial["kernel_x_above_n"], *polynomial["kernel_x_above_2n"]):
        assert 0.0 < share < 1.0


def test_a_gaussian_beyond_the_threshold_is_below_the_smallest_normal_number() -> None:
    for dtype, expected in {torch.float32: 87.336, torch.bfloat16: 87.336, torch.float16: 9.704}.items():
        threshold = underflow_threshold(dtype)
        assert math.exp(-threshold * 1.0001) < torch.finfo(dtype).tiny < math.exp(-threshold * 0.9999)
        assert threshold == pytest.approx(expected, abs=1e-3)


def test_attentions_whose_weights_do_not_depend_on_the_size_of_their_scores_are_not_monitored() -> None:
    """Softmax takes any score, and for power softmax scores a thousand times as large give the same weights."""
    assert set(ATTENTION) - set(MONITORED) == {"softmax", "explicit", "power"}
    query, key, value = torch.randn(3, 1, 2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    power = find_attention("power").function
    small, large = (power(query * scale, key, value, dropout=0.0) for scale in (1.0, 1000.0))
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-5)


def test_16_bits_change_the_statistics_by_their_rounding_only() -> None:
    model = model_of("gaussian-poly-8", scale=10.0).float()
    exact, rounded = (measure(model, dtype=dtype)["kernel_x_mean"] for dtype in ("fp32", "bf16"))
    assert rounded == pytest.approx(exact, rel=0.01)
    assert rounded != exact


# The warning


def test_a_new_model_is_not_warned_of_and_one_with_large_weights_is(messages: list[str]) -> None:
    for name in POLYNOMIALS:
        messages.clear()
        measure(model_of(name))
        assert messages == [], name
        measure(model_of(name, scale=40.0), step=7)
        (message,) = messages
        assert message.startswith("step 7, layer ")
        assert f"above 2N = {2 * ATTENTION[name].degree} for " in message
        assert "lower --lr, add --qk-norm, or " in message
        assert message.isprintable()


def test_the_warning_names_the_layer_and_the_share_of_the_worst(messages: list[str]) -> None:
    model = model_of("gaussian-poly-2")
    with torch.no_grad():
        model.blocks[1].attention.qkv.weight.mul_(30.0)
    found = measure(model, step=5)
    assert found["kernel_x_above_2n"][0] == 0.0
    share, largest = 100 * found["kernel_x_above_2n"][1], found["kernel_x_max"][1]
    assert all(text in messages[0] for text in ("layer 1: ", f"for {share:.3g} % of", f"(largest {largest:.3g})"))


def test_a_warning_is_repeated_only_when_it_becomes_much_worse(messages: list[str]) -> None:
    model = model_of("gaussian-poly-2")
    monitor, shares = monitor_of(model), []
    for step in range(60):
        with torch.no_grad():
            model.blocks[0].attention.qkv.weight.mul_(1.1)
        before = len(messages)
        share = max(monitor.measure(tokens(), step)["kernel_x_above_2n"])
        shares += [share] if len(messages) > before else []
    assert 1 < len(shares) < 4
    assert all(later >= attention_stats.MUCH_WORSE * earlier for earlier, later in itertools.pairwise(shares))


def test_with_qk_norm_the_advice_is_an_n_that_suffices(messages: list[str]) -> None:
    settings: dict[str, Any] = {"scale": 1e6, "qk_norm": True, "n_embd": 64}  # D = 32
    measure(model_of("gaussian-poly-2", **settings))
    assert "with qk_norm" in messages[0]
    assert "gaussian-poly-6" in messages[0]
    assert measure(model_of("gaussian-poly-6", **settings))["kernel_x_above_2n"] == [0.0, 0.0]
    assert len(messages) == 1


def test_a_run_logs_the_warning(small_run: RunConfig, messages: list[str]) -> None:
    train(changed(small_run, attention="gaussian-poly-2", lr=0.5, warmup_steps=0, steps=12))
    step = next(line["step"] for line in lines_of(small_run) if max(line["kernel_x_above_2n"]) > 0)
    assert next(text for text in messages if "2N = 4" in text).startswith(f"step {step}, layer ")


# No trace


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gaussian-poly-2", {}),
        ("gaussian-poly-2", {"compile": "on", "compile_backend": "aot_eager"}),
        ("pointwise-relu", {"dtype": "bf16"}),
    ],
)
def test_a_monitored_run_is_the_same_to_the_bit_and_compiles_nothing_more(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]
) -> None:
    monitored = changed(small_run, attention=name, dropout=0.2, steps=6, eval_every=0, **settings)
    plain = changed(monitored, out=str(tmp_path / "plain"))
    train(monitored)
    graphs = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(AttentionMonitor, "measure", lambda *_: {})
    train(plain)
    assert counters["stats"]["unique_graphs"] == graphs == ("compile" in settings)
    assert_same_run(monitored, plain)
    assert "weight_sum_max" in lines_of(monitored)[-1]


def test_measuring_uses_no_random_number_and_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gaussian", dropout=0.5)
    hidden, modes, before = model.hidden, [], torch.get_rng_state()

    def recorded(inputs: Tensor) -> Tensor:
        modes.append((torch.is_grad_enabled(), model.training))
        return hidden(inputs)

    monkeypatch.setattr(model, "hidden", recorded)
    first = measure(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert modes == [(False, False)]  # nothing is kept for a backward pass
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert measure(model, step=2) == first


def test_only_the_main_process_measures_and_only_what_is_monitored() -> None:
    """So there is no collective, and several ranks train as without it."""
    for name, is_main_process in (("gaussian", False), ("softmax", True)):
        model = model_of(name)
        model.hidden = None  # type: ignore[assignment]
        assert measure(model, is_main_process=is_main_process) == {}


def test_of_a_long_sequence_the_first_tokens_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gaussian", scale=20.0)
    short = monitor_of(model).measure(tokens()[:, :5], 1)
    monkeypatch.setattr(attention_stats, "MAX_TOKENS", 5)
    assert measure(model) == short


# In the files


def test_every_logged_line_has_them_and_a_resumed_run_the_same(small_run: RunConfig, tmp_path: Path) -> None:
    config = changed(small_run, attention="gaussian-poly-2", log_every=3, schedule="constant")
    train(changed(config, steps=10))
    train(config)
    once = changed(config, out=str(tmp_path / "once"))
    train(once)
    assert column(config, "step") == [3, 6, 9, 10, 12, 15, 18, 20]
    assert column(config, "kernel_x_mean") == column(once, "kernel_x_mean")
    assert [len(layers) for layers in column(config, "kernel_x_mean")] == [2] * 8


def test_non_finite_weights_still_make_a_line(tmp_path: Path) -> None:
    model = model_of("gaussian-poly-2")
    with torch.no_grad():
        model.blocks[1].attention.qkv.weight.fill_(math.inf)
    assert append_metrics(tmp_path / "metrics.jsonl", {"step": 1, **measure(model)})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["kernel_x_mean"][1] in ("nan", "inf")
    assert isinstance(line["kernel_x_mean"][0], float)


def test_every_statistic_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    statistics = {statistic for name in MONITORED for statistic in measure(model_of(name))}
    assert [statistic for statistic in statistics if f"`{statistic}`" not in page] == []
