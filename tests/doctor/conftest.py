"""Text and the band of the small recipe, made once for all tests here."""

from pathlib import Path

import pytest
from small_recipe import SEEDS, band_of, prepare_text, settings

from quillgpt.evaluate.bands import Band
from quillgpt.run_record import read_run
from quillgpt.train.loop import train


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of the small recipe."""
    return prepare_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def small_band(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Band:
    """The band of the small recipe, from eight seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    runs = [train(settings(text, folder / str(seed), seed=seed)).run for seed in SEEDS]
    return band_of([read_run(run) for run in runs])
