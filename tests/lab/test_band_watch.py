"""The reference band during training: on the screen and in the metrics, the same after a resume, and without effect."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from quillgpt.config import RunConfig
from quillgpt.data.dataset import TokenDataset
from quillgpt.lab.bands import BandWatch
from quillgpt.lab.bands.band import Band
from quillgpt.training.loop import train
from quillgpt.training.screen import Terminal
from small_runs import changed, column, differing, lines_of, weights_of
from synthetic_bands import band_of


@pytest.fixture
def config(small_run: RunConfig) -> RunConfig:
    """Twenty steps, every second one logged."""
    return changed(small_run, log_every=2, save_every=0, eval_every=0)


def excess_of(config: RunConfig) -> dict[int, float]:
    return {line["step"]: line["band_excess"] for line in lines_of(config) if "band_excess" in line}


def band_around(config: RunConfig, losses: list[float] | np.ndarray) -> Band:
    """A band around these mean losses, for runs of the settings on their data."""
    runs = np.array([np.asarray(losses) + 0.001 * seed for seed in range(-4, 4)])
    fingerprint = TokenDataset.open(Path(config.data.data), "train").fingerprint
    return band_of(config, runs, tokens_per_step=256, recipe="small", fingerprint=fingerprint)


def screen_of(config: RunConfig, band: Band, *, is_terminal: bool = False) -> str:
    """What the screen of a run shows with this band."""
    output = io.StringIO()
    console = Console(file=output, width=200, highlight=False, color_system=None, force_terminal=is_terminal)
    train(config, Terminal(console, band=BandWatch([band])))
    return output.getvalue()


def test_a_run_inside_its_band_is_reported_as_such(config: RunConfig, tmp_path: Path) -> None:
    train(config)
    again = changed(config, out=str(tmp_path / "again"))
    shown = screen_of(again, band_around(config, column(config, "train_loss_mean")))
    assert "inside the reference band" in shown
    assert "check" not in shown
    assert excess_of(again) == dict.fromkeys(range(8, 21, 2), 0.0)


def test_without_a_band_the_reason_is_logged(config: RunConfig, messages: list[str]) -> None:
    screen_of(config, band_around(changed(config, n_layer=1), np.full(10, 2.0)))
    assert messages == ["reference band: no band for these settings: n_layer 2, not 1 (of the recipe small)"]
    assert excess_of(config) == {}


def test_a_run_outside_is_reported_without_changing_a_bit_and_also_after_a_resume(
    config: RunConfig, tmp_path: Path
) -> None:
    band = band_around(config, np.full(10, 2.0))
    unwatched = train(changed(config, out=str(tmp_path / "unwatched"))).run
    terminal = changed(config, out=str(tmp_path / "terminal"))
    for run, is_terminal in ((config, False), (terminal, True)):
        shown = screen_of(run, band, is_terminal=is_terminal)
        last = excess_of(run)[20]
        assert last > 1.0
        assert f"{last:.2f} above the reference band since step 8: check `quill doctor {run.train.out}`" in shown
    halves = changed(config, out=str(tmp_path / "halves"), decay_steps=20)
    screen_of(changed(halves, steps=11), band)  # between two lines, and between two points
    assert "since step 8" in screen_of(halves, band)
    for run in (config.train.out, halves.train.out):
        assert differing(weights_of(run), weights_of(unwatched)) == []
    excess, resumed = excess_of(config), excess_of(halves)
    assert excess.keys() == resumed.keys() == set(range(8, 21, 2))
    assert list(resumed.values()) == pytest.approx(list(excess.values()))
