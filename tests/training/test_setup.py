"""Setting a run up: what is refused before anything is made, and the records that a run leaves."""

import json
from pathlib import Path

import pytest

from quillgpt.config import RunConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import CheckpointError, ConfigError, OutOfMemory
from quillgpt.model.sizes import parameter_count
from quillgpt.training import setup
from quillgpt.training.loop import train
from quillgpt.training.setup import opened_run
from quillgpt.training.state import TrainState
from small_runs import RUNTIME, changed, run_of


def test_an_unknown_menu_entry_is_refused_before_anything_is_made(small_run: RunConfig) -> None:
    wrong = {"schedule": "foo", "optimizer": "adam", "track": "wandbb", "source": "text2", "attention": "soft"}
    wrong |= {"mlp": "gelu2", "norm": "rms", "position": "rotating", "residual": "post", "initialization": "xavier"}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=f"{name}.*'{value}'.*choose one of: "):
            train(changed(small_run, **{name: value}))
    assert not run_of(small_run).path.exists()


def test_a_batch_that_clearly_does_not_fit_is_refused_at_once(small_run: RunConfig) -> None:
    with pytest.raises(OutOfMemory, match="lower --batch-size") as raised:
        train(changed(small_run, batch_size=10_000_000, gradient_accumulation_steps=1))
    assert raised.value.exit_code == 71


def test_data_that_is_not_there_is_refused_naming_the_command_that_prepares_it(small_run: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"elsewhere: no prepared data there; `quill prepare .* --out elsewhere`"):
        train(changed(small_run, data="elsewhere"))


def test_a_run_without_a_name_goes_into_runs(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(changed(small_run, steps=1, out="auto")).run == Path("runs/run")


def test_a_run_records_its_settings_and_its_environment(small_run: RunConfig) -> None:
    train(changed(small_run, steps=1))
    record = json.loads(run_of(small_run).environment.read_text())
    assert record["runtime"] | {"device": "cpu", "dtype": "fp32", "threads": 1, "steps": 1} == record["runtime"]
    assert record["runtime"]["global_batch_size"] == 8
    assert record["steps"] == 1
    assert record["parameters"] == parameter_count(small_run.model)
    assert record["compile_seconds"] == 0.0
    assert record["data"]["directory"] == small_run.data.data
    assert record["data"]["val_tokens"] > 0
    assert 'dtype = "fp32"' in run_of(small_run).config.read_text()


def test_leftovers_of_a_killed_save_are_removed_by_rank_0_only(tmp_path: Path) -> None:
    leftover = tmp_path / "run" / "checkpoints" / ".tmp-step-000010"
    for ranks, is_left in ((Ranks(rank=1, world_size=2), True), (Ranks(), False)):
        leftover.mkdir(parents=True, exist_ok=True)
        with opened_run(str(tmp_path / "run"), ranks):
            assert leftover.exists() == is_left


def test_a_rank_that_found_another_checkpoint_than_rank_0_is_refused(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "broadcast_int", lambda *_: 100)
    ranks = Ranks(rank=1, world_size=2)
    setup._check_same_step(run_of(small_run), TrainState(step=100), RUNTIME, ranks)
    message = "rank 0 continues from step 100, rank 1 from step 90; put --out where all nodes see the same files"
    with pytest.raises(CheckpointError, match=message):
        setup._check_same_step(run_of(small_run), TrainState(step=90), RUNTIME, ranks)
