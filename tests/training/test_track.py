"""Trackers get the numbers of metrics.jsonl; a package that is missing is a clear error."""

import builtins
import sys
from pathlib import Path

import pytest

from quillgpt.config import RunConfig
from quillgpt.errors import ConfigError
from quillgpt.training.loop import train
from quillgpt.training.track import TRACKERS, start_tracker
from small_runs import changed


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.filterwarnings("default")  # the trackers' own warnings are theirs
def test_a_tracked_run_reaches_the_tracker(
    name: str, small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"}
    for variable, value in (environment | {"TRACKIO_DIR": str(tmp_path / "trackio")}).items():
        monkeypatch.setenv(variable, value)  # before the import, which reads some of them
    pytest.importorskip(name)
    outcome = train(changed(small_run, track=name, steps=4))
    assert outcome.step == 4
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(outcome.run / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4]
    if name == "wandb":
        assert list(outcome.run.rglob("*.wandb"))
    if name == "trackio":
        assert list((tmp_path / "trackio").rglob("*.db"))


def test_a_missing_package_says_how_to_get_it_and_an_unknown_tracker_which_is_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = builtins.__import__

    def without(module: str, *rest: object) -> object:
        if module.split(".")[0] in TRACKERS or module == "torch.utils.tensorboard":
            raise ImportError(name=module)
        return real(module, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in TRACKERS:
        monkeypatch.delitem(sys.modules, TRACKERS[name], raising=False)
        with pytest.raises(ConfigError, match=rf"{name} .*pip install 'quillgpt\[track\]'"):
            start_tracker(name, project="p", name="n", settings={}, directory=tmp_path)
    with pytest.raises(ConfigError, match="did you mean wandb"):
        start_tracker("wandbb", project="p", name="n", settings={}, directory=tmp_path)
