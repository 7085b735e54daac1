"""Directories that `transformers` saved, and GPT-2's vocabulary if this machine has it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from saved_models import SMALL, random_model
from transformers import GPT2LMHeadModel

VOCABULARY = Path(__file__).parents[3] / "shared" / "data" / "tiktoken-cache"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[GPT2LMHeadModel, Path]]:
    """Make a small model of theirs with changed settings, and the directory that `save_pretrained` writes."""

    def save(*, shards: str = "50GB", **changes: Any) -> tuple[GPT2LMHeadModel, Path]:
        directory = tmp_path_factory.mktemp("theirs")
        model = random_model(**{**SMALL, **changes})
        model.save_pretrained(directory, max_shard_size=shards)
        return model, directory

    return save


@pytest.fixture
def gpt2_vocabulary(monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiktoken's cache with GPT-2's vocabulary."""
    directory = Path(os.environ.get("TIKTOKEN_CACHE_DIR", VOCABULARY))
    if not directory.is_dir():
        pytest.skip("GPT-2's vocabulary is not on this machine")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(directory))
    return directory
