"""The reference band while training: on the screen and in the metrics, the same after a resume, and of no effect."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from quillgpt import checkpoint
from quillgpt.config import RunConfig, flatten, group_of, updated
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.evaluate.bands import Band, finding
from quillgpt.evaluate.bands.finding import defining_settings
from quillgpt.evaluate.bands.making import make_band
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.train.loop import train
from quillgpt.train.progress import Terminal

LINES = 10  # of two steps each


def band_around(config: RunConfig, losses: Sequence[float] | np.ndarray) -> Band:
    """A band of eight made-up runs about these mean losses, for runs of the settings on their data."""
    runs = np.array([np.asarray(losses) + 0.001 * seed for seed in range(-4, 4)])
    about = {
        "recipe": "small",
        "settings": defining_settings(config),
        "fingerprint": TokenDataset.open(Path(config.data.data), "train").fingerprint,
        "data": "made up",
        "optim": {name: value for name, value in flatten(config).items() if group_of()[name] == "optim"},
        "schedule_steps": config.train.steps,
        "seeds": list(range(8)),
        "commit": "none",
        "hardware": "none",
        "made_with": {},
    }
    return make_band(runs, np.ones_like(runs), about=about, tokens_per_step=256, log_every=2)


@pytest.fixture
def config(small_run: RunConfig) -> RunConfig:
    """Twenty steps, every second one logged."""
    return updated(small_run, {"log_every": 2, "save_every": 0, "eval_every": 0}, where="test")


def lines_of(config: RunConfig) -> list[dict[str, object]]:
    return read_metrics(RunDirectory(Path(config.train.out)).metrics)


def told(config: RunConfig, *, is_terminal: bool = False) -> str:
    output = io.StringIO()
    console = Console(file=output, width=200, highlight=False, color_system=None, force_terminal=is_terminal)
    train(config, Terminal(console))
    return output.getvalue()


def ship(monkeypatch: pytest.MonkeyPatch, band: Band) -> None:
    monkeypatch.setattr(finding, "shipped_bands", lambda: [band])


def test_mean_loss_is_that_of_every_step_since_the_line_before(config: RunConfig, tmp_path: Path) -> None:
    train(config)
    every_step = updated(config, {"log_every": 1, "out": str(tmp_path / "all")}, where="test")
    train(every_step)
    single = [float(str(line["loss"])) for line in lines_of(every_step)]
    assert [line["mean_loss"] for line in lines_of(every_step)] == single
    pairs = [sum(single[first : first + 2]) / 2 for first in range(0, 20, 2)]
    assert [line["mean_loss"] for line in lines_of(config)] == pairs


def test_a_run_inside_is_told_so(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config)
    losses = [float(str(line["mean_loss"])) for line in lines_of(config)]
    ship(monkeypatch, band_around(config, losses))
    again = updated(config, {"out": str(tmp_path / "again")}, where="test")
    shown = told(again)
    assert "inside the reference band" in shown
    assert "check" not in shown
    judged = [line for line in lines_of(again) if "band_excess" in line]
    assert [line["step"] for line in judged] == [8, 10, 12, 14, 16, 18, 20]
    assert {line["band_excess"] for line in judged} == {0.0}


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_run_outside_is_told_since_when_and_what_to_do(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    ship(monkeypatch, band_around(config, np.full(LINES, 2.0)))
    shown = told(config, is_terminal=is_terminal)
    last = lines_of(config)[-1]["band_excess"]
    assert float(str(last)) > 1.0
    assert f"{last:.2f} above the reference band since step 8: check `quill doctor {config.train.out}`" in shown


def test_the_reason_for_no_band_is_told_once(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(monkeypatch, band_around(updated(config, {"n_layer": 1}, where="test"), np.full(LINES, 2.0)))
    shown = told(config)
    assert shown.count("reference band: no band for these settings: n_layer 2, not 1 (of the recipe small)") == 1
    assert not any("band_excess" in line for line in lines_of(config))


def test_watching_changes_no_bit_and_a_resume_goes_on_where_it_was(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwatched = train(updated(config, {"out": str(tmp_path / "unwatched")}, where="test"))
    ship(monkeypatch, band_around(config, np.full(LINES, 2.0)))
    whole = train(config)
    halves = updated(config, {"out": str(tmp_path / "halves"), "decay_steps": 20}, where="test")
    train(updated(halves, {"steps": 11}, where="test"))  # between two lines, and between two points
    assert "since step 8" in told(halves)
    weights = [checkpoint.load_model(run)[0].state_dict() for run in (unwatched.run, whole.run, halves.train.out)]
    assert all(torch.equal(weights[0][name], other[name]) for other in weights[1:] for name in other)
    excess = [
        {line["step"]: line["band_excess"] for line in lines_of(run) if "band_excess" in line}
        for run in (config, halves)
    ]
    assert excess[0].keys() == excess[1].keys() == {8, 10, 12, 14, 16, 18, 20}
    assert list(excess[1].values()) == pytest.approx(list(excess[0].values()))


def test_mean_losses_survive_a_stop_between_two_lines(config: RunConfig) -> None:
    config = updated(config, {"save_every": 5, "keep_last": 9}, where="test")
    train(config)
    straight = [line["mean_loss"] for line in lines_of(config)]
    for later in (10, 15, 20):
        shutil.rmtree(Path(config.train.out) / "checkpoints" / f"step-{later:06d}")
    train(config)  # from step 5 on, whose loss is in no line yet
    assert [line["mean_loss"] for line in lines_of(config)] == straight
