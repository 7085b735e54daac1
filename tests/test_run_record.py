import json
import math
from pathlib import Path

import numpy as np
import pytest

import quillgpt
from quillgpt.errors import CheckpointError
from quillgpt.recipes import load_recipe
from quillgpt.run_dir import append_metrics, config_toml
from quillgpt.run_record import read_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "one"
    path.mkdir(parents=True)
    (path / "config.toml").write_text(config_toml(load_recipe("debug", steps=7)))
    return path


def test_a_trained_run_tells_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("the cat sat on the mat\n" * 300)
    settings = {"source": "text", "path": "text", "steps": 4, "log_every": 2, "eval_every": 4, "n_embd": 16}
    outcome = quillgpt.train(load_recipe("debug", **settings, out="runs/first", device="cpu"))
    record = read_run("runs/first")
    assert record.name == "first"
    assert record.settings["steps"] == 4
    assert "out" not in record.settings
    steps, losses = record.series("loss")
    assert steps.tolist() == [2.0, 4.0]
    assert losses.dtype == np.float64
    assert record.series("held_out_loss", over="tokens")[1].tolist() == [outcome.held_out.loss]
    assert record.environment["data"]["held_out_tokens"] == outcome.held_out.tokens
    manifest = json.loads(next(Path("runs/first/checkpoints").glob("*/manifest.json")).read_text())
    assert record.data_fingerprint == manifest["data"]


def test_numbers_that_json_lacks_come_back_as_numbers(run: Path) -> None:
    append_metrics(run / "metrics.jsonl", {"step": 1, "loss": math.inf, "kernel": [1.0, math.nan], "mfu": None})
    record = read_run(run)
    assert record.lines[0]["loss"] == math.inf
    assert math.isnan(record.lines[0]["kernel"][1])
    assert record.series("mfu")[0].shape == (0,)
    assert record.data_fingerprint == ""


def test_evaluations_come_in_the_order_of_their_names(run: Path) -> None:
    (run / "evaluations").mkdir()
    for name in ("step-000200-loss", "step-000100-loss", ".half-written"):
        (run / "evaluations" / f"{name}.json").write_text(json.dumps({"name": name}))
    assert [entry["name"] for entry in read_run(run).evaluations] == ["step-000100-loss", "step-000200-loss"]


def test_a_misspelt_run_gets_the_nearest_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    with pytest.raises(CheckpointError, match=r"runs/oen: no run there, it has no config.toml \(did you mean runs/one"):
        read_run("runs/oen")
    with pytest.raises(CheckpointError, match="did you mean runs/one"):
        read_run("one")


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000])
def test_a_damaged_record_is_told_in_one_line(run: Path, content: str) -> None:
    (run / "environment.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"environment\.json"):
        read_run(run)


def test_a_number_that_no_float_holds_is_left_out(run: Path) -> None:
    append_metrics(run / "metrics.jsonl", {"step": 1, "loss": 10**400})
    append_metrics(run / "metrics.jsonl", {"step": 2, "loss": 2.5})
    assert read_run(run).series("loss")[1].tolist() == [2.5]
