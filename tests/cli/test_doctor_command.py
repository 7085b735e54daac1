"""`quill doctor` on records without a checkpoint: verdict, plot, causes, JSON, exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quillgpt.cli import main as command_line
from quillgpt.errors import CheckError, CheckpointError, DataError
from quillgpt.lab.doctor.causes import CAUSES
from quillgpt.optim.schedules import learning_rate
from quillgpt.recipes import recipe_config
from quillgpt.run_dir import append_metrics, config_toml
from synthetic_bands import band_of

LINES = 20
CURVE = 2.0 + 2.0 * np.exp(-np.arange(1, LINES + 1) / 4)

Doctor = Callable[..., tuple[str, str]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run `quill doctor` in a folder with a band; return the output and the error, "" if nothing was found."""
    losses = CURVE + np.random.default_rng(0).normal(0.0, 0.02, (8, LINES))
    band = band_of(recipe_config("debug", steps=200), losses, tokens_per_step=1024)
    (tmp_path / "band.json").write_text(json.dumps(band.to_json()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: str) -> tuple[str, str]:
        error = ""
        try:
            code = command_line.run(["doctor", *words, "--band", "band.json"])
        except CheckError as raised:
            code, error = command_line.explained(raised)[0], str(raised)
        assert code == (76 if error else 0)
        return capsys.readouterr().out, error

    return run


def write_run(name: str, losses: np.ndarray, changed: dict[int, dict[str, Any]] | None = None, **settings: Any) -> None:
    """Records of a run with these mean losses; `changed`: more entries of some lines."""
    path = Path("runs") / name
    path.mkdir(parents=True)
    config = recipe_config("debug", **settings)
    (path / "config.toml").write_text(config_toml(config))
    (path / "environment.json").write_text(json.dumps({"steps": 200, "data": {"fingerprint": "f" * 64}}))
    for number, loss in enumerate(losses):
        step = 10 * (number + 1)
        line = {"step": step, "tokens": 1024 * step, "lr": learning_rate(step - 1, 200, config.optim)}
        line |= {"train_loss": loss, "train_loss_mean": loss, "grad_norm": 0.5, "tokens_per_second": 1e4}
        append_metrics(path / "metrics.jsonl", line | (changed or {}).get(number, {}))


def test_a_healthy_run_ends_with_0_and_the_causes_checked_are_listed(doctor: Doctor) -> None:
    write_run("fine", CURVE)
    shown, error = doctor("runs/fine", "--no-probes")
    assert error == ""
    for text in (
        "runs/fine: step 200 of 200, 204,800 tokens",
        "inside the reference band, at every point",
        "nothing found",
        "checked and not found:",
        "learning rate too high",
        "not checked, because --no-probes opens no checkpoint:",
    ):
        assert text in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    plot = [line for line in shown.splitlines() if "░" in line]
    assert len(plot) == 9
    assert sum(line.count("●") for line in plot) == 17


def test_a_run_outside_ends_with_76_cause_evidence_and_remedy(doctor: Doctor) -> None:
    write_run("fast", CURVE + 0.5, lr=3e-2)
    shown, error = doctor("runs/fast", "--no-probes")
    assert error == "runs/fast: learning rate too high (very likely)"
    for text in (
        "above the reference band since step 40, outside at 17 of 17 points",
        "1. learning rate too high: very likely",
        "lr = 0.03 is 10 times the rate of the recipe's runs, 0.003",
        "lower it: --lr 0.003",
    ):
        assert text in " ".join(shown.split())
    found = json.loads(doctor("runs/fast", "--json", "True")[0])
    assert (found["findings"][0]["cause"], found["findings"][0]["certainty"]) == (
        "learning rate too high",
        "very likely",
    )
    assert not found["is_healthy"]
    assert set(found["checked"]) | set(found["not_checked"]) | {"learning rate too high"} == set(CAUSES)
    assert found["not_checked"]["targets shifted"] == "runs/fast has no intact checkpoint"
    assert len(found["band"]["points"]) == 17
    assert found["band"]["points"][0]["excess"] > 0


def test_outside_without_a_known_cause_is_reported_as_such(doctor: Doctor) -> None:
    write_run("odd", CURVE + 0.5)
    shown, error = doctor("runs/odd", "--no-probes")
    assert "outside the reference band (likely)" in error
    assert "at most 1.7% of healthy runs" in " ".join(shown.split())


def test_a_run_without_a_band_or_with_few_lines_is_diagnosed_from_its_records(doctor: Doctor) -> None:
    write_run("own", CURVE, n_layer=9)
    shown, error = doctor("runs/own")
    assert error == ""
    assert "no band for these settings: n_layer 9, not 2 (of the recipe debug)" in shown
    write_run("new", CURVE[:2])
    shown, error = doctor("runs/new", "--no-probes")
    assert error == ""
    assert "the band begins at step 40" in shown


def test_a_missing_run_or_band_is_one_line(doctor: Doctor) -> None:
    write_run("fine", CURVE)
    with pytest.raises(CheckpointError, match=r"runs/nothing"):
        doctor("runs/nothing")
    with pytest.raises(DataError, match=r"nothing\.json"):
        command_line.run(["doctor", "runs/fine", "--band", "nothing.json"])


def test_the_most_certain_cause_comes_first_then_the_order_of_the_menu(doctor: Doctor) -> None:
    changed: dict[int, dict[str, Any]] = {4: {"skipped": True}}
    changed |= {line: {"train_loss": CURVE[line] + 2.0} for line in (14, 16)}
    changed |= {line: {"val_loss": v, "val_loss_stderr": 0.01} for line, v in ((9, 2.5), (19, 3.5))}
    write_run("ill", CURVE, changed)
    found = json.loads(doctor("runs/ill", "--json", "True")[0])["findings"]
    assert [(finding["cause"], finding["certainty"]) for finding in found] == [
        ("steps skipped", "very likely"),
        ("overfitting", "very likely"),
        ("loss spikes", "likely"),
    ]


def test_a_cause_that_follows_from_another_is_not_reported(doctor: Doctor) -> None:
    write_run("idle", CURVE, {line: {"lr": 0.0, "grad_norm": 30.0} for line in range(LINES)})
    found = json.loads(doctor("runs/idle", "--json", "True")[0])
    assert [finding["cause"] for finding in found["findings"]] == ["learning rate zero"]
    assert "clipped every step" not in found["checked"]
