"""Trackers get the numbers of metrics.jsonl; one that is not installed is a clear error."""

import builtins
import sys
from pathlib import Path

import pytest

from quillgpt.config import RunConfig, updated
from quillgpt.errors import ConfigError
from quillgpt.train.loop import train
from quillgpt.train.track import TRACKERS, start_tracker

PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboard", "trackio": "trackio"}


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.filterwarnings("default")  # the trackers' own warnings are theirs
def test_a_tracked_run_reaches_the_tracker(
    name: str, small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(PACKAGES[name])
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outcome = train(updated(small_run, {"track": name, "steps": 4}, where="test"))
    assert outcome.step == 4
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(outcome.run / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    if name == "wandb":
        assert list(outcome.run.rglob("*.wandb"))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(module: str, *rest: object) -> object:
        if module.split(".")[0] in PACKAGES.values() or module == "torch.utils.tensorboard":
            raise ImportError(name=module)
        return real(module, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, TRACKERS[name], raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'quillgpt\[track\]'"):
        start_tracker(name, project="p", name="n", settings={}, directory=tmp_path)


def test_an_unknown_tracker_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean wandb"):
        start_tracker("wandbb", project="p", name="n", settings={}, directory=tmp_path)
