"""`quill doctor` as it is typed, on records without a checkpoint: verdict, picture, causes, JSON, exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quillgpt.cli import main as command_line
from quillgpt.config import flatten, group_of
from quillgpt.doctor.causes import CAUSES
from quillgpt.errors import CheckError, CheckpointError, DataError
from quillgpt.evaluate.bands.finding import defining_settings
from quillgpt.evaluate.bands.making import make_band
from quillgpt.optim.schedules import learning_rate
from quillgpt.recipes import load_recipe
from quillgpt.run_dir import append_metrics, config_toml

LINES = 20
CONFIG = load_recipe("debug")
LEVEL = 2.0 + 2.0 * np.exp(-np.arange(1, LINES + 1) / 4)

Type = Callable[..., int]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a band in band.json."""
    losses = LEVEL + np.random.default_rng(0).normal(0.0, 0.02, (8, LINES))
    about = {
        "recipe": "debug",
        "settings": defining_settings(CONFIG),
        "fingerprint": "f" * 64,
        "data": "made up",
        "optim": {name: value for name, value in flatten(CONFIG).items() if group_of()[name] == "optim"},
        "schedule_steps": 200,
        "seeds": list(range(8)),
        "commit": "none",
        "hardware": "none",
        "made_with": {},
    }
    band = make_band(losses, np.ones_like(losses), about=about, tokens_per_step=1024, log_every=10)
    (tmp_path / "band.json").write_text(json.dumps(band.to_json()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def a_run(name: str, losses: np.ndarray, **changes: Any) -> None:
    """Records of a run with these mean losses."""
    path = Path("runs") / name
    path.mkdir(parents=True)
    config = load_recipe("debug", **changes)
    (path / "config.toml").write_text(config_toml(config))
    (path / "environment.json").write_text(json.dumps({"steps": 200, "data": {"fingerprint": "f" * 64}}))
    for line, loss in enumerate(losses, start=1):
        step = 10 * line
        rate = learning_rate(step - 1, 200, config.optim)
        numbers = {"loss": loss, "mean_loss": loss, "lr": rate, "gradient_norm": 0.5, "tokens_per_second": 1e4}
        append_metrics(path / "metrics.jsonl", {"step": step, "tokens": 1024 * step, **numbers})


@pytest.fixture
def doctor(workplace: Path) -> Type:
    """Run `quill doctor` with the words and the band."""
    return lambda *words: command_line.run(["doctor", *words, "--band", "band.json"])


def test_a_healthy_run_ends_with_0_and_says_what_was_looked_for(
    doctor: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run("fine", LEVEL)
    assert doctor("runs/fine", "--no-probes") == 0
    shown = capsys.readouterr().out
    assert "runs/fine: step 200 of 200, 204,800 tokens" in shown
    assert "inside the reference band, at every point" in shown
    assert "nothing found" in shown
    assert "looked for and not found:" in shown
    assert "learning rate too high" in shown
    assert "not looked for, because no checkpoint was opened, as asked with --no-probes:" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    picture = [line for line in shown.splitlines() if "░" in line]
    assert len(picture) == 9
    assert sum(line.count("●") for line in picture) == 17


def test_a_run_outside_ends_with_76_and_names_cause_evidence_and_remedy(
    doctor: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run("fast", LEVEL + 0.5, lr=3e-2)
    with pytest.raises(CheckError, match=r"^runs/fast: learning rate too high \(very likely\)$") as raised:
        doctor("runs/fast", "--no-probes")
    assert command_line.explained(raised.value)[0] == 76
    shown = " ".join(capsys.readouterr().out.split())
    assert "above the reference band since step 40, outside at 17 of 17 points" in shown
    assert "1. learning rate too high: very likely" in shown
    assert "lr = 0.03 is 10 times the rate of the recipe's runs, 0.003" in shown
    assert "lower it: --lr 0.003" in shown


def test_outside_without_a_cause_is_told_as_that(doctor: Type, capsys: pytest.CaptureFixture[str]) -> None:
    a_run("odd", LEVEL + 0.5)
    with pytest.raises(CheckError, match=r"outside the reference band \(likely\)"):
        doctor("runs/odd", "--no-probes")
    assert "at most 1.7% of healthy runs" in " ".join(capsys.readouterr().out.split())


def test_json_has_everything(doctor: Type, capsys: pytest.CaptureFixture[str]) -> None:
    a_run("fast", LEVEL + 0.5, lr=3e-2)
    with pytest.raises(CheckError):
        doctor("runs/fast", "--json", "True")
    told = json.loads(capsys.readouterr().out)
    assert told["findings"][0]["cause"] == "learning rate too high"
    assert told["findings"][0]["certainty"] == "very likely"
    assert not told["is_healthy"]
    assert set(told["checked"]) | set(told["not_checked"]) | {"learning rate too high"} == set(CAUSES)
    assert told["not_checked"]["targets shifted"] == "runs/fast has no intact checkpoint"
    assert len(told["band"]["points"]) == 17
    assert told["band"]["points"][0]["excess"] > 0


def test_a_run_without_a_band_is_examined_by_its_records(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run("own", LEVEL, n_layer=9)
    assert command_line.run(["doctor", "runs/own", "--band", "band.json"]) == 0
    assert "no band for these settings: n_layer 9, not 2 (of the recipe debug)" in capsys.readouterr().out


def test_a_run_that_has_just_begun_is_no_mistake(doctor: Type, capsys: pytest.CaptureFixture[str]) -> None:
    a_run("new", LEVEL[:2])
    assert doctor("runs/new", "--no-probes") == 0
    assert "the band begins at step 40" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["runs/nothing"], ["runs/fine", "--band", "nothing.json"]])
def test_what_is_not_there_is_told_in_one_line(workplace: Path, words: list[str]) -> None:
    a_run("fine", LEVEL)
    with pytest.raises((CheckpointError, DataError), match=r"nothing"):
        command_line.run(["doctor", *words])


def test_the_most_certain_come_first_and_of_equal_certainty_the_menus_first(
    doctor: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run("ill", LEVEL)
    path = Path("runs/ill/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[4]["skipped"] = True
    for place in (14, 16):
        lines[place]["loss"] += 2.0
    for place, loss in ((9, 2.5), (19, 3.5)):
        lines[place] |= {"held_out_loss": loss, "held_out_standard_error": 0.01}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CheckError):
        doctor("runs/ill", "--json", "True")
    found = [(finding["cause"], finding["certainty"]) for finding in json.loads(capsys.readouterr().out)["findings"]]
    assert found == [("steps skipped", "very likely"), ("over-fitting", "very likely"), ("loss spikes", "likely")]
