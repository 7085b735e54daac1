"""`quill bench time-to-loss`, and the setting `stop_at_loss` that it uses."""

import json
import math
from pathlib import Path

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.config import RunConfig, updated
from quillgpt.data import load_data_tokenizer
from quillgpt.data.dataset import TokenDataset
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, DataError, Stopped
from quillgpt.evaluate.text import ALL_TOKENS, split_text
from quillgpt.lab.bench.time_to_loss import TimeToLoss, measure_time_to_loss, validation_text, with_validation_text
from quillgpt.lab.compare.measures import is_finished
from quillgpt.lab.run_record import read_run
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.training import loop
from quillgpt.training.loop import train
from quillgpt.training.screen import Screen
from quillgpt.training.setup import open_data
from quillgpt.training.state import TrainState, read_state

REACHABLE = 5.3  # 257 tokens begin at ln 257 = 5.55


def changed(config: RunConfig, **settings: object) -> RunConfig:
    return updated(config, settings, where="test")


def state_of(config: RunConfig) -> TrainState:
    saved = checkpoint.latest_intact(RunDirectory(Path(config.train.out)))
    assert saved is not None
    return read_state(saved)


def measured(config: RunConfig, tmp_path: Path, **changes: object) -> TimeToLoss:
    settings = {"loss": REACHABLE, "text": None, "seeds": 1} | changes
    (found,) = measure_time_to_loss([("small", config)], folder=tmp_path / "temporary", screen=Screen(), **settings)
    return found


def test_a_run_ends_saved_at_the_first_evaluation_at_the_loss(small_run: RunConfig, tmp_path: Path) -> None:
    every = changed(small_run, eval_every=2, stop_at_loss=0.0, out=str(tmp_path / "whole"))
    assert train(every).step == 20  # a loss of 0 stops nothing
    lines = [line for line in read_metrics(Path(every.train.out) / "metrics.jsonl") if "val_loss" in line]
    first = lines[2]
    assert first["val_loss"] < min(line["val_loss"] for line in lines[:2])
    config = changed(every, stop_at_loss=first["val_loss"], out=small_run.train.out)
    outcome = train(config)
    assert (outcome.step, outcome.validation.loss) == (first["step"], first["val_loss"])
    state = state_of(config)
    assert (state.step, state.has_reached_loss) == (first["step"], True)
    assert is_finished(read_run(config.train.out))
    assert train(config).step == first["step"]  # finished, until another loss is requested
    assert train(changed(config, stop_at_loss=0.0)).step == 20
    with pytest.raises(ConfigError, match="stop_at_loss"):
        changed(small_run, stop_at_loss=-1.0)


def test_seconds_of_evaluating_and_compiling_are_separate(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.evaluate_loss

    def slow(*arguments: object, **settings: object) -> object:
        loop.time.sleep(0.3)
        return real(*arguments, **settings)

    monkeypatch.setattr(loop, "evaluate_loss", slow)
    train(small_run)
    state = state_of(small_run)
    assert state.evaluation_seconds >= 0.6  # at steps 10 and 20
    line = read_metrics(Path(small_run.train.out) / "metrics.jsonl")[-1]
    assert state.elapsed_seconds == line["elapsed_seconds"]
    environment = json.loads((Path(small_run.train.out) / "environment.json").read_text())
    assert environment["compile_seconds"] == 0.0


def test_it_reports_what_the_run_did(small_run: RunConfig, tmp_path: Path) -> None:
    config = changed(small_run, eval_every=2)
    found = measured(config, tmp_path)
    (run,) = found.runs
    outcome = train(changed(config, stop_at_loss=REACHABLE, eval_tokens=ALL_TOKENS))
    assert (run.reached, run.steps, run.tokens) == (True, outcome.step, outcome.step * 256)
    assert (run.loss, run.bits_per_byte) == (outcome.validation.loss, outcome.validation.bits_per_byte)
    assert run.val_tokens == TokenDataset.open(Path(config.data.data), "val").token_count - 1
    assert run.seconds == run.training_seconds + run.compile_seconds
    assert run.training_seconds > 0 < run.evaluation_seconds
    assert found.seconds is not None
    assert found.seconds.values == (run.seconds,)
    assert not list((tmp_path / "temporary").iterdir())


def test_a_given_text_validates_with_every_byte_and_leaves_training_as_it_was(
    small_run: RunConfig, tmp_path: Path
) -> None:
    directory, config = Path(small_run.data.data), changed(small_run, eval_every=2)
    file = tmp_path / "text.txt"
    file.write_bytes(split_text(TokenDataset.open(directory, "val"), load_data_tokenizer(directory))[:1000])
    text = validation_text(str(file), tmp_path / "checked")
    (run,) = measured(config, tmp_path, text=text).runs
    assert (run.val_tokens, run.reached) == (1001, True)  # and the end of text after it
    (own,) = measured(config, tmp_path, loss=0.01).runs
    (judged,) = measured(config, tmp_path, loss=0.01, text=text).runs
    assert (judged.steps, judged.tokens) == (own.steps, own.tokens)
    data = open_data(changed(small_run, eval_tokens=ALL_TOKENS), None, Ranks(), Screen())
    replaced = with_validation_text(changed(small_run, eval_tokens=ALL_TOKENS), text, tmp_path / "data", Screen())
    given = open_data(replaced, None, Ranks(), Screen())
    assert given.validation.dataset.text_bytes == 1000
    assert [shard.tokens.tolist() for shard in given.train.shards] == [s.tokens.tolist() for s in data.train.shards]
    # the windows of `quill eval --data FILE`, whose tokens begin after an end of text
    expected = text.split("val", data.tokenizer, tmp_path / "expected", 0).windows(32, 0)
    for ours, theirs in zip(given.validation.batches(100), expected.batches(100), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_unusable_text_is_refused_before_training(tmp_path: Path) -> None:
    cases = [(None, "no such file"), (b"", "there is no text in it"), (b"\xff\xfe", "not UTF-8 at byte 0")]
    for content, message in cases:
        file = tmp_path / "text.txt"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(DataError, match=message) as refused:
            validation_text(str(file), tmp_path / "checked")
        assert not [flag for flag in ("--data", "--errors") if flag in str(refused.value)]


def test_sides_take_turns_seed_by_seed(small_run: RunConfig, tmp_path: Path, messages: list[str]) -> None:
    config = changed(small_run, eval_every=4)
    sides = [("a", config), ("b", changed(config, lr=1e-3))]
    found = measure_time_to_loss(
        sides, loss=REACHABLE, text=None, seeds=2, folder=tmp_path / "temporary", screen=Screen()
    )
    assert [text for text in messages if "seed" in text] == [
        "a, seed 1337",
        "b, seed 1337",
        "b, seed 1338",
        "a, seed 1338",
    ]
    assert [[run.seed for run in side.runs] for side in found] == [[1337, 1338], [1337, 1338]]
    assert found[0].runs[0].loss != found[0].runs[1].loss


def test_a_run_that_misses_the_loss_or_diverges_says_so_and_has_no_median(small_run: RunConfig, tmp_path: Path) -> None:
    found = measured(small_run, tmp_path, loss=0.01)
    (missed,) = found.runs
    assert (missed.reached, missed.steps, found.reached, found.seconds) == (False, 20, False, None)
    assert missed.loss is not None
    assert missed.loss > 0.01
    (diverged,) = measured(changed(small_run, lr=1e30, warmup_steps=0, gradient_clip=0.0), tmp_path).runs
    assert (diverged.reached, diverged.loss) == (False, None)


def test_an_invalid_request_is_refused_by_name(small_run: RunConfig, tmp_path: Path) -> None:
    for wrong in ({"loss": 0.0}, {"loss": -1.0}, {"loss": math.nan}, {"loss": math.inf}, {"seeds": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            measured(small_run, tmp_path, **wrong)


def test_a_signal_promises_no_continuation(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_agree", lambda *_: (1.0, True, False))
    with pytest.raises(Stopped, match=r"^stopped before the loss was reached; nothing is kept$"):
        measured(small_run, tmp_path)
