"""`quill bench time-to-loss`, and the setting `stop_at_loss` that it stands on."""

import json
import math
from pathlib import Path

import pytest

from quillgpt import checkpoint
from quillgpt.bench.time_to_loss import Reached, judging_text, spread_of, times_to_loss
from quillgpt.compare.readings import is_finished
from quillgpt.config import RunConfig, updated
from quillgpt.data import load_data_tokenizer
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import ConfigError, DataError, Stopped
from quillgpt.evaluate.compressors import split_text
from quillgpt.evaluate.held_out_text import ALL_TOKENS
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.run_record import read_run
from quillgpt.train import loop
from quillgpt.train.loop import train
from quillgpt.train.progress import Quiet
from quillgpt.train.resume import Position, read_position

REACHABLE = 5.3  # 257 tokens begin at ln 257 = 5.55


def changed(config: RunConfig, **settings: object) -> RunConfig:
    return updated(config, settings, where="test")


def position_of(config: RunConfig) -> Position:
    saved = checkpoint.newest_intact(RunDirectory(Path(config.train.out)), print)
    assert saved is not None
    return read_position(saved)


def times(config: RunConfig, tmp_path: Path, **asked: object) -> list[list[Reached]]:
    settings = {"loss": REACHABLE, "text": None, "seeds": 1} | asked
    return times_to_loss([("small", config)], folder=tmp_path / "temporary", screen=Quiet(), **settings)


def test_a_run_ends_saved_at_the_first_evaluation_at_the_loss(small_run: RunConfig, tmp_path: Path) -> None:
    every = changed(small_run, eval_every=2, out=str(tmp_path / "whole"))
    train(every)
    lines = [line for line in read_metrics(Path(every.train.out) / "metrics.jsonl") if "held_out_loss" in line]
    first = lines[2]
    assert first["held_out_loss"] < min(line["held_out_loss"] for line in lines[:2])
    config = changed(every, stop_at_loss=first["held_out_loss"], out=small_run.train.out)
    outcome = train(config)
    assert (outcome.step, outcome.held_out.loss) == (first["step"], first["held_out_loss"])
    position = position_of(config)
    assert (position.step, position.has_reached_loss) == (first["step"], True)
    assert is_finished(read_run(config.train.out))


def test_a_run_that_reached_its_loss_is_finished_until_another_is_asked(small_run: RunConfig) -> None:
    config = changed(small_run, eval_every=2, stop_at_loss=REACHABLE)
    step = train(config).step
    assert train(config).step == step < 20
    assert train(changed(config, stop_at_loss=0.0)).step == 20


def test_a_loss_of_zero_stops_nothing(small_run: RunConfig) -> None:
    assert train(changed(small_run, stop_at_loss=0.0)).step == 20
    with pytest.raises(ConfigError, match=r"stop_at_loss = -1\.0 is not possible"):
        changed(small_run, stop_at_loss=-1.0)


def test_seconds_of_evaluating_and_compiling_are_apart(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.evaluate_held_out

    def slow(*arguments: object, **settings: object) -> object:
        loop.time.sleep(0.3)
        return real(*arguments, **settings)

    monkeypatch.setattr(loop, "evaluate_held_out", slow)
    train(small_run)
    position = position_of(small_run)
    assert position.evaluation_seconds >= 0.6  # at steps 10 and 20
    line = read_metrics(Path(small_run.train.out) / "metrics.jsonl")[-1]
    assert position.elapsed_seconds == line["elapsed_seconds"]
    environment = json.loads((Path(small_run.train.out) / "environment.json").read_text())
    assert environment["compile_seconds"] == 0.0


def test_what_is_told_is_what_the_run_did(small_run: RunConfig, tmp_path: Path) -> None:
    config = changed(small_run, eval_every=2)
    ((found,),) = times(config, tmp_path)
    same = changed(config, stop_at_loss=REACHABLE, eval_tokens=ALL_TOKENS)
    outcome = train(same)
    assert (found.reached, found.steps, found.tokens) == (True, outcome.step, outcome.step * 256)
    assert (found.loss, found.bits_per_byte) == (outcome.held_out.loss, outcome.held_out.bits_per_byte)
    assert found.held_out_tokens == TokenDataset.open(Path(config.data.data), "val").token_count - 1
    assert found.seconds == found.training_seconds + found.compile_seconds
    assert found.training_seconds > 0 < found.evaluation_seconds
    assert not list((tmp_path / "temporary").iterdir())


def test_a_named_text_judges_every_byte_of_it(small_run: RunConfig, tmp_path: Path) -> None:
    directory = Path(small_run.data.data)
    held_out = split_text(TokenDataset.open(directory, "val"), load_data_tokenizer(directory))
    file = tmp_path / "text.txt"
    file.write_bytes(held_out[:1000])
    text = judging_text(str(file), tmp_path / "checked")
    ((found,),) = times(changed(small_run, eval_every=2), tmp_path, text=text)
    assert found.held_out_tokens == 1001  # and the end of text behind it
    assert found.reached


@pytest.mark.parametrize(
    ("content", "told"), [(None, "no such file"), (b"", "there is no text in it"), (b"\xff\xfe", "not UTF-8 at byte 0")]
)
def test_a_text_that_cannot_judge_is_refused_first(content: bytes | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=told) as refused:
        judging_text(str(file), tmp_path / "checked")
    assert "--data" not in str(refused.value)
    assert "--errors" not in str(refused.value)


def test_sides_take_turns_seed_by_seed(small_run: RunConfig, tmp_path: Path) -> None:
    said: list[str] = []
    screen = Quiet()
    screen.say = said.append
    config = changed(small_run, eval_every=4)
    sides = [("a", config), ("b", changed(config, lr=1e-3))]
    found = times_to_loss(sides, loss=REACHABLE, text=None, seeds=2, folder=tmp_path / "temporary", screen=screen)
    assert [text for text in said if "seed" in text] == ["a, seed 1337", "b, seed 1337", "b, seed 1338", "a, seed 1338"]
    assert [[run.seed for run in runs] for runs in found] == [[1337, 1338], [1337, 1338]]
    assert found[0][0].loss != found[0][1].loss


def test_a_run_that_does_not_reach_it_or_diverges_says_so(small_run: RunConfig, tmp_path: Path) -> None:
    ((missed,),) = times(small_run, tmp_path, loss=0.01)
    assert (missed.reached, missed.steps) == (False, 20)
    assert missed.loss > 0.01
    broken = changed(small_run, lr=1e30, warmup_steps=0, gradient_clip=0.0)
    ((diverged,),) = times(broken, tmp_path)
    assert not diverged.reached
    assert math.isnan(diverged.loss)
    assert spread_of([missed, diverged], lambda run: run.seconds) is None


@pytest.mark.parametrize(
    "wrong", [{"loss": 0.0}, {"loss": -1.0}, {"loss": math.nan}, {"loss": math.inf}, {"seeds": 0}], ids=str
)
def test_what_cannot_be_asked_is_refused(wrong: dict, small_run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not possible"):
        times(small_run, tmp_path, **wrong)


def test_a_signal_promises_no_continuation(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_agree", lambda *_: (1.0, True, False))
    with pytest.raises(Stopped, match=r"^stopped before the loss was reached; nothing is kept$"):
        times(small_run, tmp_path)
