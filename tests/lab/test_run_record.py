"""The records of a run are those that training wrote; damaged ones are refused in one line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import quillgpt
from quillgpt.errors import CheckpointError
from quillgpt.lab.run_record import read_run
from quillgpt.recipes import recipe_config
from quillgpt.run_dir import append_metrics, config_toml


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "one"
    path.mkdir(parents=True)
    (path / "config.toml").write_text(config_toml(recipe_config("debug", steps=7)))
    return path


def test_the_record_of_a_trained_run_is_what_the_run_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("the cat sat on the mat\n" * 300)
    settings = {"source": "text", "path": "text", "steps": 4, "log_every": 2, "eval_every": 4, "n_embd": 16}
    outcome = quillgpt.train(recipe_config("debug", **settings, out="runs/first", device="cpu"))
    record = read_run("runs/first")
    assert (record.name, record.settings["steps"]) == ("first", 4)
    assert "out" not in record.settings
    steps, losses = record.series("train_loss")
    assert steps.tolist() == [2.0, 4.0]
    assert losses.dtype == np.float64
    assert record.series("val_loss", over="tokens")[1].tolist() == [outcome.validation.loss]
    assert record.environment["data"]["val_tokens"] == outcome.validation.tokens
    manifest = json.loads(next(Path("runs/first/checkpoints").glob("*/manifest.json")).read_text())
    assert record.data_fingerprint == manifest["data"]


def test_numbers_that_are_not_finite_are_read_back_and_other_values_are_left_out(run: Path) -> None:
    for line in (
        {"train_loss": math.inf, "kernel": [1.0, math.nan], "mfu": None},
        {"train_loss": 10**400},
        {"train_loss": 2.5},
    ):
        append_metrics(run / "metrics.jsonl", {"step": 1} | line)
    record = read_run(run)
    assert record.lines[0]["train_loss"] == math.inf
    assert math.isnan(record.lines[0]["kernel"][1])
    assert record.series("mfu")[0].shape == (0,)
    assert record.series("train_loss")[1].tolist() == [math.inf, 2.5]
    assert record.data_fingerprint == ""


def test_evaluations_are_sorted_by_name(run: Path) -> None:
    (run / "evaluations").mkdir()
    for name in ("step-000200-loss", "step-000100-loss", ".half-written"):
        (run / "evaluations" / f"{name}.json").write_text(json.dumps({"name": name}))
    assert [entry["name"] for entry in read_run(run).evaluations] == ["step-000100-loss", "step-000200-loss"]


def test_a_misspelt_or_damaged_run_is_refused_in_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    with pytest.raises(CheckpointError, match=r"runs/oen: no run there, it has no config.toml \(did you mean runs/one"):
        read_run("runs/oen")
    with pytest.raises(CheckpointError, match="did you mean runs/one"):
        read_run("one")
    for content in ("{", "[1]", "[" * 100_000):
        (run / "environment.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"environment\.json") as raised:
            read_run(run)
        assert "\n" not in str(raised.value)
