"""Text and the band of the small recipe, made once for all tests here."""

from pathlib import Path

import numpy as np
import pytest
from small_recipe import SEEDS, prepare_text, settings

from quillgpt.lab.bands.band import Band
from quillgpt.lab.run_record import read_run
from quillgpt.training.loop import train
from synthetic_bands import band_of


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of the small recipe."""
    return prepare_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def small_band(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Band:
    """The band of the small recipe, from eight seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    records = [read_run(train(settings(text, folder / str(seed), seed=seed)).run) for seed in SEEDS]
    losses, norms = (np.array([one.series(name)[1] for one in records]) for name in ("train_loss_mean", "grad_norm"))
    return band_of(
        records[0].config,
        losses,
        tokens_per_step=16 * 32,
        gradient_norms=norms,
        recipe="small",
        fingerprint=records[0].data_fingerprint,
    )
