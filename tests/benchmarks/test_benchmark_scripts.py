"""What the scripts in benchmarks/ compute, that they run at tiny sizes, and that their finished runs can be read."""

import ast
import itertools
import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ablations
import attention
import bare_loop
import decoding
import gpu
import measuring
import memory
import numpy as np
import pytest
import time_to_loss
import torch
import train_speed
from ablations import FULL, GPT2S, lines_of, table
from measuring import NOTHING_KEPT, ONE_THREAD, PLACES, RESULTS, append, interval, one_run, rows_of
from scipy import stats
from time_to_loss import steps_to, summary, sweep_settings

from quillgpt import GPT, load_recipe
from quillgpt.config import ModelConfig, RunConfig, updated
from quillgpt.errors import ConfigError, NonFiniteError
from quillgpt.evaluate.loss import ValidationLoss
from quillgpt.model.attention import ATTENTION
from quillgpt.optim.schedules import learning_rate
from quillgpt.run_dir import read_metrics
from quillgpt.training.loop import train

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODERN = """
optimizer = "muon"
n_layer = 1
n_head = 1
n_embd = 16
context_length = 16
vocab_size = 257
source = "text"
tokenizer = "byte"
position = "rotary"
mlp = "relu2"
lr = 0.02
embedding_lr = 0.1
momentum_warmup_steps = 5
batch_size = 2
steps = 3
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small recipe, and its text in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(MODERN, encoding="utf-8")
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 200, encoding="utf-8")
    return str(tmp_path / "small.toml")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the main function of a script with flags, without changing what torch uses in this process."""
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(train_speed, "set_up_torch", lambda *_, **__: None)
    monkeypatch.setattr(gpu, "set_up_torch", lambda *_, **__: None)

    def called(main: Any, *flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["script", *flags])
        measuring.run_script("A script.", main)

    return called


def test_an_interval_is_students() -> None:
    values = [1.0, 2.5, 4.0]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert math.isnan(interval([3.0])[1])


def test_a_finished_run_is_not_repeated_and_that_of_a_changed_recipe_is(recipe: str, tmp_path: Path) -> None:
    results, path = tmp_path / "results.jsonl", str(tmp_path / "text.txt")
    wanted = {f"seed {seed}": {**NOTHING_KEPT, **ONE_THREAD, "seed": seed, "path": path} for seed in (1, 2)}
    row = one_run("seed 1", recipe, wanted["seed 1"])
    assert row["steps"] == 3
    assert row["tokens"] == 3 * 2 * 16
    assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2), rel=0.05)  # a byte is a token
    assert path not in json.dumps(row)  # nor any other place of this machine
    results.write_text('{"torn": ')
    append(results, row)
    assert list(rows_of(results, recipe, wanted)) == ["seed 1"]
    assert list(measuring.finish_missing(results, recipe, wanted, processes=0)) == ["seed 1"]
    Path(recipe).write_text(MODERN.replace("lr = 0.02", "lr = 0.03"), encoding="utf-8")
    assert rows_of(results, recipe, wanted) == {}
    assert measuring.commit()


def test_leaving_one_out_changes_only_that_line_and_only_lines_that_the_recipe_has(recipe: str) -> None:
    runs = lines_of(recipe, 3, 1, {}, ())
    without_muon = [line for line in GPT2S if line.startswith("Muon")]
    assert set(runs) == {FULL, "rotary positions", "ReLU²", "momentum warm-up", *without_muon}
    for line, settings in runs.items():
        assert {name: value for name, value in settings.items() if name not in runs[FULL]} == GPT2S.get(line, {})
    assert set(lines_of(recipe, 3, 1, {}, ("relu",))) == {FULL, "ReLU²"}
    assert set(lines_of("gpt2-124m", 3, 1, {}, ())) == {FULL, "no biases"}
    for settings in GPT2S.values():
        updated(RunConfig(), settings, where="test")


def test_the_difference_in_the_table_is_taken_seed_by_seed() -> None:
    def row(seed: int, bits: float | None) -> dict[str, object]:
        return {"bits_per_byte": bits, "settings": {"seed": seed}}

    luck = {1: 0.0, 2: 0.5, 3: -0.5}
    rows = {f"{FULL}, seed {seed}": row(seed, 2.0 + own) for seed, own in luck.items()}
    rows |= {f"QK-norm, seed {seed}": row(seed, 2.1 + own + seed / 1000) for seed, own in luck.items()}
    rows |= {f"ReLU², seed {seed}": row(seed, None) for seed in luck}
    text = [line.strip("| ").split(" | ") for line in table(rows).splitlines()]
    assert text[2] == ["nothing: the full recipe", "2.0000", "0.5000", "", "3", "0"]
    low, high = stats.t.interval(0.95, 2, loc=0.102, scale=0.001 / math.sqrt(3))
    assert text[3][3] == f"+0.1020 ({low:+.4f} to {high:+.4f})"
    assert text[4] == ["ReLU²", "", "", "", "0", "3"]


def test_the_steps_to_a_loss_are_between_the_runs_on_either_side() -> None:
    losses = {10: 3.0, 100: 2.0, 1000: 1.0, 50: None}
    found = [steps_to(losses, target) for target in (1.5, 2.0, 3.5, 0.5)]
    assert found == pytest.approx([10**2.5, 100, 10, 0])


def test_both_sides_of_the_steps_differ_from_the_recipe_as_they_say(recipe: str) -> None:
    modern = sweep_settings(recipe, "modern", 0.04, 1, 40)
    assert (modern["lr"], modern["embedding_lr"], modern["steps"]) == (0.04, 0.2, 40)
    gpt2 = sweep_settings(recipe, "gpt2", 0.004, 1, 40)
    assert (gpt2["lr"], gpt2["min_lr"], gpt2["optimizer"], gpt2["schedule"]) == (0.004, 0.0004, "adamw", "cosine")
    assert {name for settings in GPT2S.values() for name in settings} <= gpt2.keys()


def test_the_verdict_on_the_time_needs_every_seed_to_reach_the_loss() -> None:
    def rows(seconds: list[float], reached: list[bool]) -> list[dict[str, object]]:
        return [{"seconds": s, "reached": r} for s, r in zip(seconds, reached, strict=True)]

    slow = rows([100.0, 110.0, 90.0], [True, False, True])
    text = summary({"baseline": slow, "challenger": rows([10.0, 11.0, 9.0], [True] * 3)}, 1.8857)
    assert "challenger / baseline: 0.100" in text
    assert "1 of 3 did not reach the loss" in text
    assert "goal 0.2: met" in text
    for fast, holds in itertools.product(([10.0] * 3, [30.0] * 3), (True, False)):
        text = summary({"baseline": slow, "challenger": rows(fast, [True, True, holds])}, 1.8857)
        assert ("goal 0.2: met" in text) == (holds and fast[0] == 10.0)


def test_recipes_are_timed_to_a_loss_and_for_minutes(
    recipe: str, tmp_path: Path, script: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    commands = {"seconds": time_to_loss.seconds, "minutes": time_to_loss.minutes}
    results, text = tmp_path / "rows.jsonl", str(tmp_path / "text.txt")
    words = ["--seeds", "1", "--results", str(results)]
    wide = f"{recipe} --context-length 64"  # of the windows that judge
    sides = ["--baseline", wide, "--challenger", f"{wide} --lr 0.01 --steps 4", "--path", text]
    script(commands, "seconds", *words, *sides, "--threads", "1", "--loss", "1.0")
    baseline, challenger = read_metrics(results)
    assert [(row["side"], row["steps"], row["reached"]) for row in (baseline, challenger)] == [
        ("baseline", 3, False),
        ("challenger", 4, False),
    ]
    assert baseline["seconds"] == baseline["training_seconds"] + baseline["compile_seconds"]
    script(commands, "minutes", f"{recipe} --path {text}", *words, "--minutes", "0.002")
    row = read_metrics(results)[-1]
    assert row["of_xz"] == row["bits_per_byte"] / row["compressors"]["xz -9e"]
    told = capsys.readouterr().out
    assert "NOT REACHED" in told
    assert "x xz -9e; goal 0.92: NOT met" in told


def test_rows_are_read_by_the_scripts_and_name_no_place_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rows = [json.loads(line) for file in sorted(RESULTS.glob("*.jsonl")) for line in file.read_text().splitlines()]
    assert rows
    assert not [row["run"] for row in rows if {*PLACES} & row.get("settings", {}).keys()]
    monkeypatch.setattr(ablations, "SUBSETS", 4)  # of 100: the correlations are the same
    ablations.leave_one_out("modern-python", processes=0)
    ablations.paired_seeds(table_only=True)
    attention.variants(table_only=True)
    time_to_loss.steps("modern-shakespeare-char", 500, processes=0)
    text = capsys.readouterr().out
    figures = ["| untied head | 3.2871 |", "median 0.56, 0.05 to 0.91", "| softmax | 2.0875 |", "0.182 ± 0.060"]
    assert [figure for figure in figures if figure not in text] == []
    variants = [row for row in rows if "comparison" in row]
    pairs = [(row["entry"], row["seed"], json.dumps(row["comparison"], sort_keys=True)) for row in variants]
    assert len(set(pairs)) == len(pairs)
    assert all(row["bits_per_byte"] is not None or row["failure"] for row in variants)


def test_every_command_in_a_script_and_in_the_docs_exists() -> None:
    commands = {}
    for path in BENCHMARKS.glob("*.py"):
        keys = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        commands[path.name] = {key for key in keys if isinstance(key, str)}
    pages = [*BENCHMARKS.glob("*.py"), *BENCHMARKS.parent.glob("docs/*.md"), BENCHMARKS.parent / "README.md"]
    wrong, found = [], 0
    for page in pages:
        for name, word in re.findall(r"python benchmarks/(\w+\.py)(?: ([a-z][a-z-]+)\b)?", page.read_text()):
            found += 1
            has_commands = name not in ("gpu.py", "bundled_model.py", "reference_bands.py")
            if name not in commands or (has_commands and word not in commands[name]):
                wrong.append(f"{page.name}: {name} {word}")
    assert found > 40
    assert not wrong, "\n".join(wrong)


def test_the_bare_net_is_nanogpt_cpus() -> None:
    """The same weights give the same loss, so that the two loops are timed on the same work."""
    torch.manual_seed(1)
    bare, config = bare_loop.GPT2(bare_loop.Net(vocab_size=257)).double(), load_recipe("nanogpt-cpu")
    ours = GPT(replace(config.model, vocab_size=257)).double()
    with torch.no_grad():
        ours.token_embedding.weight[:257] = bare.tokens.weight
        ours.position_embedding.weight.copy_(bare.positions.weight)
        for block, theirs in zip(ours.blocks, bare.blocks, strict=True):
            block.attention.qkv.weight.copy_(theirs.qkv.weight)
            block.attention.projection.weight.copy_(theirs.projection.weight)
            block.mlp.expand.weight.copy_(theirs.expand.weight)
            block.mlp.project.weight.copy_(theirs.contract.weight)
    rows = torch.randint(257, (3, 65))
    loss = torch.nn.functional.cross_entropy(ours(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    assert loss.item() == pytest.approx(bare(rows[:, :-1], rows[:, 1:]).item(), abs=1e-10)


def test_the_bare_loop_has_the_rates_of_nanogpt_cpu_and_learns() -> None:
    settings = load_recipe("nanogpt-cpu").optim
    loop = bare_loop.BareLoop(bare_loop.Net(layers=1, width=32, heads=2), np.tile(np.arange(65), 40), seed=1)
    for step in (0, 50, 99, 100, 1000, 1999):
        loop.step = step
        assert loop.rate() == pytest.approx(learning_rate(step, 2000, settings), rel=1e-9)
    loop.step = 100
    rows = torch.arange(65)[None]
    with torch.no_grad():
        before = loop.model(rows[:, :-1], rows[:, 1:]).item()
    assert len(loop.run(30)) == 30
    with torch.no_grad():
        assert loop.model(rows[:, :-1], rows[:, 1:]).item() < before - 1
    assert loop.step == 130


def fake_train(bits: dict[str, float], calls: list[tuple[str, int]]) -> Any:
    """A `train` that takes no time: bits per byte by entry, a little more for a later seed; negative: not finite."""

    def fake(config: RunConfig) -> Any:
        entry, seed = config.model.attention, config.train.seed
        calls.append((entry, seed))
        if bits[entry] < 0:
            raise NonFiniteError("step 3: loss nan")
        loss = ValidationLoss(loss=1.0, standard_error=0.1, bits_per_byte=bits[entry] + seed / 100, tokens=1, bytes=1)
        return SimpleNamespace(validation=loss)

    return fake


def test_attentions_are_compared_on_the_demos_data_with_equal_settings(tmp_path: Path) -> None:
    configs = [attention.Comparison().config(entry, 1, tmp_path) for entry in ATTENTION]
    base = updated(configs[0], {"attention": "softmax"}, where="test")
    assert [updated(config, {"attention": "softmax"}, where="test") for config in configs] == [base] * len(ATTENTION)
    assert (base.data.source, base.data.tokenizer, base.model.vocab_size) == ("python", "bpe", 2048)
    assert (base.train.threads, base.train.minutes, base.model.qk_norm) == (1, 0.0, False)


def test_attentions_that_are_finished_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(attention, "train", fake_train({"softmax": 2.0, "power": 3.0}, calls))
    results, comparison = tmp_path / "results" / "rows.jsonl", attention.Comparison()
    attention.run_missing(comparison, ["softmax"], [1, 2], results)
    results.write_bytes(results.read_bytes()[:-20])  # killed in the middle of a write
    attention.run_missing(comparison, ["softmax", "power"], [1, 2], results)
    assert calls == [("softmax", 1), ("softmax", 2), ("power", 1), ("softmax", 2), ("power", 2)]
    attention.run_missing(comparison, ["softmax", "power"], [1, 2], results)
    assert len(calls) == 5
    assert attention.finished(comparison, results) == {(e, seed) for e in ("softmax", "power") for seed in (1, 2)}
    for other in (attention.Comparison(steps=5), attention.Comparison(qk_norm=True)):
        attention.run_missing(other, ["power"], [1], results)  # rows of another comparison do not count
    assert len(calls) == 7
    with pytest.raises(ConfigError, match="did you mean power"):
        attention.run_missing(comparison, ["softmax", "powr"], [3], results)
    assert len(calls) == 7


def test_a_diverged_attention_is_a_row_and_last_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = {"pointwise-relu2": -1.0, "power": 2.5, "softmax": 2.0}
    monkeypatch.setattr(attention, "train", fake_train(bits, []))
    results = tmp_path / "rows.jsonl"
    attention.run_missing(attention.Comparison(), list(bits), [1, 2], results)
    rows = read_metrics(results)
    assert [row["failure"] for row in rows if row["entry"] == "pointwise-relu2"] == ["step 3: loss nan"] * 2
    lines = attention.table(rows).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| softmax", "| power", "| pointwise-relu2"]
    assert lines[-1].endswith("| 2 | 2 |")
    values = [2.0, 2.5, 2.1]
    rows = [{"entry": "power", "bits_per_byte": value, "seconds": value * 10} for value in values]
    rows.append({"entry": "power", "bits_per_byte": None, "seconds": 1.0})
    cells = attention.table(rows).splitlines()[2].strip("| ").split(" | ")
    assert cells == ["power", "2.2000", f"{statistics.stdev(values):.4f}", "2.0000", "2.5000", "20.5", "4", "1"]


def test_a_real_run_of_an_attention_makes_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_run: RunConfig
) -> None:
    def on_small_data(config: RunConfig) -> Any:
        small = {"data": small_run.data.data, "source": "text", "tokenizer": "byte", "vocab_size": 257}
        return train(updated(config, small | {"context_length": 32, "batch_tokens": 256}, where="test"))

    monkeypatch.setattr(attention, "train", on_small_data)
    attention.run_missing(attention.Comparison(steps=2), ["gaussian-poly-2"], [1], tmp_path / "rows.jsonl")
    (row,) = read_metrics(tmp_path / "rows.jsonl")
    assert 5.0 < row["bits_per_byte"] < 10.0
    assert (row["comparison"]["steps"], row["comparison"]["threads"]) == (2, 1)
    assert len(row["last_look"]["kernel_x_above_2n"]) == 2
    assert row["seconds"] > 0


def test_the_gpu_script_writes_speed_profile_and_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    script(gpu.main, "--smoke", "--out", "results")
    results = json.loads(Path("results/gpu.json").read_text())
    assert results["is_a_measurement"] is False
    assert {name: side["rows"] for name, side in results["speed"]["sides"].items()} == {"ours": 2, "like nanoGPT": 12}
    assert all(side["tokens_per_second"] > 0 for side in results["speed"]["sides"].values())
    assert results["speed"]["runtime"]["dtype"] == "bf16"
    steps = {name: [point["step"] for point in points] for name, points in results["training"].items()}
    assert steps == {"GPT-2": [3, 6], "modern": [3, 6]}
    assert "aten::" in Path("results/profile.txt").read_text()
    assert Path("results/loss-against-minutes.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA card here; --smoke tries the script on a CPU"):
        script(gpu.main, "--out", "nothing")


def test_training_speed_is_compared_and_its_parts_add_up(
    monkeypatch: pytest.MonkeyPatch, script: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    model, optim, _ = train_speed.NETS["demo"]
    tiny = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32}
    monkeypatch.setattr(train_speed, "NETS", {"demo": (ModelConfig(**(vars(model) | tiny)), optim, 4)})
    monkeypatch.setattr(train_speed, "WIDTHS", (64,))
    commands = {"compare": train_speed.compare, "parts": train_speed.parts, "muon": train_speed.muon}
    for flags in (["compare", "--rounds", "1", "--seconds", "0.01"], ["parts", "--steps", "12"], ["muon"]):
        script(commands, *flags)
    told = capsys.readouterr().out
    assert "fp32, torch's own operations" in told
    assert "1.00 x" in told
    assert "width   64: ours" in told
    shares = [float(line.split()[-1].rstrip("%")) for line in told.splitlines() if " ms " in line and "%" in line]
    assert len(shares) == 6
    assert all(share > 0 for share in shares)
    assert sum(shares) == pytest.approx(100, abs=0.1)


def test_sampling_and_scoring_are_compared_at_a_tiny_size(
    monkeypatch: pytest.MonkeyPatch, script: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    tiny = ModelConfig(n_layer=1, n_head=1, n_embd=32, context_length=256, vocab_size=257)
    monkeypatch.setitem(decoding.SIZES, "gpt2", tiny)
    commands = {"cache": decoding.cache, "batch": decoding.batch, "shared-context": decoding.shared_context}
    script(commands, "cache", "--tokens", "20", "--prompt-tokens", "8")
    script(commands, "batch", "--tokens", "4", "--rounds", "1", "--forms", "fp32")
    script(commands, "shared-context", "--items", "2", "--turn-items", "1")
    told = capsys.readouterr().out
    assert "tokens equal: True" in told
    assert "fp32     16 sequences" in told
    apart = [float(line.split("at most ")[1].split()[0]) for line in told.splitlines() if "nats apart" in line]
    assert len(apart) == 4
    assert max(apart) < 1e-3


def test_memory_of_the_loss_is_measured() -> None:
    assert memory.loss_bytes(8) >= 0
