"""The script that compares the attentions: it continues where it was killed, outlives a failed run, counts right."""

import importlib.util
import json
import statistics
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from quillgpt.config import RunConfig, updated
from quillgpt.errors import ConfigError, NonFiniteError
from quillgpt.evaluate.held_out_loss import HeldOutLoss
from quillgpt.model.attention import ATTENTION
from quillgpt.run_dir import read_metrics
from quillgpt.train.loop import train

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "attention_variants.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("attention_variants", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["attention_variants"] = module
    specification.loader.exec_module(module)
    return module


def trained(bits: dict[str, float], asked: list[tuple[str, int]]) -> Any:
    """A `train` that takes no time: bits per byte by entry, a little more for a later seed; negative: not finite."""

    def fake(config: RunConfig) -> Any:
        entry, seed = config.model.attention, config.train.seed
        asked.append((entry, seed))
        if bits[entry] < 0:
            raise NonFiniteError("step 3: loss nan")
        loss = HeldOutLoss(loss=1.0, standard_error=0.1, bits_per_byte=bits[entry] + seed / 100, tokens=1, bytes=1)
        return SimpleNamespace(held_out=loss)

    return fake


def test_it_compares_the_whole_menu_on_the_demos_data(script: ModuleType, tmp_path: Path) -> None:
    configs = [script.Comparison().config(entry, 1, tmp_path) for entry in ATTENTION]
    base = updated(configs[0], {"attention": "softmax"}, where="test")
    assert [updated(config, {"attention": "softmax"}, where="test") for config in configs] == [base] * len(ATTENTION)
    assert (base.data.source, base.data.tokenizer, base.model.vocab_size) == ("python", "bpe", 2048)
    assert (base.train.threads, base.train.minutes, base.model.qk_norm) == (1, 0.0, False)


def test_finished_runs_are_skipped_and_a_torn_line_is_run_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(script, "train", trained({"softmax": 2.0, "power": 3.0}, asked))
    results = tmp_path / "results" / "rows.jsonl"
    comparison = script.Comparison()
    script.run_missing(comparison, ["softmax"], [1, 2], results)
    results.write_bytes(results.read_bytes()[:-20])  # killed in the middle of a write
    script.run_missing(comparison, ["softmax", "power"], [1, 2], results)
    assert asked == [("softmax", 1), ("softmax", 2), ("power", 1), ("softmax", 2), ("power", 2)]
    script.run_missing(comparison, ["softmax", "power"], [1, 2], results)
    assert len(asked) == 5
    assert script.finished(comparison, results) == {(entry, seed) for entry in ("softmax", "power") for seed in (1, 2)}


def test_rows_of_another_comparison_do_not_count(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(script, "train", trained({"power": 3.0}, asked))
    results = tmp_path / "rows.jsonl"
    for comparison in (script.Comparison(steps=5), script.Comparison(), script.Comparison(qk_norm=True)):
        script.run_missing(comparison, ["power"], [1], results)
    assert len(asked) == 3
    assert script.finished(script.Comparison(), results) == {("power", 1)}


def test_a_loss_that_is_not_finite_is_a_row(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = {"pointwise-relu2": -1.0, "power": 2.5, "softmax": 2.0}
    monkeypatch.setattr(script, "train", trained(bits, []))
    results = tmp_path / "rows.jsonl"
    script.run_missing(script.Comparison(), list(bits), [1, 2], results)
    rows = read_metrics(results)
    assert [row["failure"] for row in rows if row["entry"] == "pointwise-relu2"] == ["step 3: loss nan"] * 2
    lines = script.table(rows).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| softmax", "| power", "| pointwise-relu2"]
    assert lines[-1].endswith("| 2 | 2 |")


def test_the_table_tells_mean_spread_and_extremes(script: ModuleType) -> None:
    bits = [2.0, 2.5, 2.1]
    rows = [{"entry": "power", "bits_per_byte": value, "seconds": value * 10} for value in bits]
    rows.append({"entry": "power", "bits_per_byte": None, "seconds": 1.0})
    cells = script.table(rows).splitlines()[2].strip("| ").split(" | ")
    assert cells == ["power", "2.2000", f"{statistics.stdev(bits):.4f}", "2.0000", "2.5000", "20.5", "4", "1"]


def test_an_unknown_entry_is_refused_before_anything_is_trained(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean power"):
        script.run_missing(script.Comparison(), ["softmax", "powr"], [1], tmp_path / "rows.jsonl")


def test_a_real_run_makes_a_row_that_says_how_it_was_made(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_run: RunConfig
) -> None:
    def on_small_data(config: RunConfig) -> Any:
        small = {"data": small_run.data.data, "source": "text", "tokenizer": "byte", "vocab_size": 257}
        return train(updated(config, small | {"context_length": 32, "batch_tokens": 256}, where="test"))

    monkeypatch.setattr(script, "train", on_small_data)
    results = tmp_path / "rows.jsonl"
    script.run_missing(script.Comparison(steps=2), ["gaussian-poly-2"], [1], results)
    (row,) = read_metrics(results)
    assert 5.0 < row["bits_per_byte"] < 10.0
    assert row["comparison"]["steps"] == 2
    assert row["comparison"]["threads"] == 1
    assert len(row["last_look"]["kernel_x_above_2n"]) == 2
    assert row["seconds"] > 0


def test_the_committed_rows_are_whole(script: ModuleType) -> None:
    if not script.RESULTS.exists():
        pytest.skip("nothing measured yet")
    rows = [json.loads(line) for line in script.RESULTS.read_text().splitlines()]
    pairs = [(row["entry"], row["seed"], json.dumps(row["comparison"], sort_keys=True)) for row in rows]
    assert len(set(pairs)) == len(pairs)
    assert all(row["bits_per_byte"] is not None or row["failure"] for row in rows)
