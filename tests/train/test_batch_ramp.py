"""A batch that grows: a pure function of the step, continued bit for bit, measured and counted right."""

import itertools
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from test_resume import assert_same_run, killed_at

from quillgpt import checkpoint
from quillgpt.config import RunConfig, TrainConfig, updated
from quillgpt.config.batch_ramp import MOST_STAGES, batch_stages
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import ConfigError
from quillgpt.optim.schedules import learning_rate
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.train import calibrate
from quillgpt.train.batch_ramp import continued, pieces, rate_share, rows_in_all, stage_rows, steps_within
from quillgpt.train.loop import train
from quillgpt.train.resume import Position

RAMP = "0.25@0,0.5@0.3,1@0.6"


def changed(config: RunConfig, **settings: object) -> RunConfig:
    return updated(config, settings, where="test")


def ramped(config: RunConfig, **settings: object) -> RunConfig:
    """8 sequences of 32 tokens a step in the end, over 20 steps: 2 from step 0, 4 from 6, 8 from 12."""
    return changed(config, **{"batch_ramp": RAMP, "eval_every": 0, "save_every": 10} | settings)


def lines_of(config: RunConfig) -> list[dict[str, object]]:
    return read_metrics(RunDirectory(Path(config.train.out)).metrics)


def rows_of(config: RunConfig) -> list[int]:
    """Sequences of each step, from the tokens that were counted."""
    tokens = [0, *(int(str(line["tokens"])) for line in lines_of(config))]
    return [(later - earlier) // config.model.context_length for earlier, later in itertools.pairwise(tokens)]


def slow_rows(ramp: str, rows: int, steps: int) -> list[int]:
    """The rows of every step, by looking at every stage for every step."""
    found = []
    for step in range(steps):
        shares = [share for share, begin in batch_stages(ramp) if round(begin * steps) <= step]
        found.append(max(1, round(shares[-1] * rows)))
    return found


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 1000])
@pytest.mark.parametrize("rows", [1, 3, 8, 480])
@pytest.mark.parametrize("ramp", [RAMP, "0.1@0,1@0.999", "1@0", "0.3@0,0.31@0.01,1@0.02", ""])
def test_the_pieces_are_the_ramp_step_by_step(ramp: str, rows: int, steps: int) -> None:
    plan = pieces(ramp, rows=rows, steps=steps)
    schedule = Position(rows=plan[0][1], row_changes=[list(piece) for piece in plan[1:]]).schedule(32)
    expected = slow_rows(ramp, rows, steps)
    assert plan[0][0] == 0
    assert [schedule.rows_at(step) for step in range(steps)] == expected
    assert schedule.position(steps) == 32 * sum(expected) == 32 * rows_in_all(ramp, rows=rows, steps=steps)
    assert set(expected) <= set(stage_rows(ramp, rows))


@pytest.mark.parametrize(
    "ramp",
    [
        *("0.25", "0.25@0", "0.25@0,1@1", "1@0.5", "0@0,1@0.5", "-1@0,1@0.5", "0.5@0,2@0.5", "0.5@0,1@-0.1", "x"),
        *("0.5@0.3,1@0", "1@0,0.5@0.5", "0.5@0,0.5@0.2,1@0.4", "0.5@0,1@0", "nan@0,1@0.5", "0.5@nan,1@0.5", ",", "@"),
        *("0.5@0,1@0.5,", "0.5@0@0,1@0.5", "0.5@0;1@0.5", "inf@0,1@0.5", " ", "0.5@0,1@1e999", "1" * 5000 + "@0"),
        ",".join(f"{(n + 1) / 100}@{n / 100}" for n in range(100)),
    ],
)
def test_what_is_no_ramp_is_refused_in_one_short_line(ramp: str) -> None:
    with pytest.raises(ConfigError, match=r"^batch_ramp = .* is not possible: expected stages as in 0\.25@0") as caught:
        TrainConfig(batch_ramp=ramp)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_as_many_stages_as_allowed_are_taken() -> None:
    ramp = ",".join(f"{(n + 1) / MOST_STAGES}@{n / MOST_STAGES}" for n in range(MOST_STAGES))
    assert len(batch_stages(ramp)) == MOST_STAGES


def test_a_run_has_the_batches_of_its_ramp_and_counts_their_tokens(small_run: RunConfig) -> None:
    config = ramped(small_run)
    train(config)
    assert rows_of(config) == [2] * 6 + [4] * 6 + [8] * 8
    saved = checkpoint.committed(RunDirectory(Path(config.train.out)))[-1].read_json("state.json")
    assert (saved["rows"], saved["row_changes"], saved["tokens"]) == (2, [[6, 4], [12, 8]], 32 * 100)


def test_the_rate_follows_the_root_of_the_share(small_run: RunConfig) -> None:
    config = ramped(small_run)
    train(config)
    shares = [math.sqrt(rows / 8) for rows in rows_of(config)]
    whole = [learning_rate(step, 20, config.optim) for step in range(20)]
    assert [line["lr"] for line in lines_of(config)] == pytest.approx(
        [rate * share for rate, share in zip(whole, shares, strict=True)], rel=1e-12
    )
    assert rate_share(8, 8) == 1.0


def test_without_a_ramp_nothing_is_other_than_before(small_run: RunConfig, tmp_path: Path) -> None:
    plain, one = changed(small_run), changed(small_run, batch_ramp="1@0", out=str(tmp_path / "one"))
    train(plain)
    train(one)
    assert_same_run(plain.train.out, one.train.out)


def test_each_token_is_seen_once_an_epoch(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ramp's batches one after the other are those of a run with one sequence a step."""
    seen: list[torch.Tensor] = []

    from quillgpt.train import loop

    whole = loop.gradients

    def noting(wrapped: object, inputs: torch.Tensor, targets: torch.Tensor, **others: object) -> torch.Tensor:
        seen.append(targets)
        return whole(wrapped, inputs, targets, **others)

    monkeypatch.setattr(loop, "gradients", noting)
    train(ramped(small_run))
    grown, seen = torch.cat(seen), []
    train(changed(small_run, batch_size=1, gradient_accumulation_steps=1, steps=100, out=f"{small_run.train.out}-1"))
    assert torch.equal(grown, torch.cat(seen))


@pytest.mark.parametrize("kill_at", [4, 8, 13])
def test_killed_anywhere_in_the_ramp_it_is_bitwise_the_same_run(
    small_run: RunConfig, tmp_path: Path, kill_at: int
) -> None:
    config = ramped(small_run, save_every=3, dropout=0.1)
    whole = changed(config, out=str(tmp_path / "whole"))
    train(whole)
    assert killed_at(config, kill_at, "SIGKILL", tmp_path).returncode == -signal.SIGKILL
    train(config)
    assert_same_run(config.train.out, whole.train.out)


def test_what_was_done_stays_when_the_rest_is_changed() -> None:
    done = [(0, 2), (6, 4), (12, 8)]
    assert continued(done, pieces(RAMP, rows=8, steps=20), 10) == done
    assert continued(done, pieces("", rows=6, steps=20), 10) == [(0, 2), (6, 4), (10, 6)]
    assert continued(done, pieces(RAMP, rows=8, steps=40), 10) == [(0, 2), (6, 4), (10, 2), (12, 4), (24, 8)]
    assert continued(done, pieces(RAMP, rows=8, steps=20), 6) == done
    assert continued([], pieces(RAMP, rows=8, steps=20), 0) == done


def test_a_ramp_given_up_half_way_keeps_the_place_in_the_data(small_run: RunConfig) -> None:
    config = ramped(small_run, save_every=8)
    train(changed(config, stop_at_loss=1e9, eval_every=8))  # ends after step 8
    train(changed(config, batch_ramp="", steps=12))
    assert rows_of(config) == [2] * 6 + [4] * 2 + [8] * 4


@pytest.mark.parametrize("first", [0, 17])
@pytest.mark.parametrize("budget", [0.0, 1.0, 20.0])
def test_the_steps_within_a_budget_are_the_most_that_fit(first: int, budget: float) -> None:
    def needed(count: int) -> float:
        return sum(0.1 + 0.05 * rows + 0.02 for rows in slow_rows(RAMP, 8, first + count)[first:])

    found = steps_within(budget, ramp=RAMP, rows=8, first=first, seconds=lambda rows: 0.1 + 0.05 * rows, besides=0.02)
    assert found == max(1, next(count for count in itertools.count(1) if needed(count) > budget + 1e-9) - 1)


def test_minutes_measure_every_size_of_the_batch(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 2, 4, 8 rows is told to take 1, 2, 3 s, so 20 steps of this ramp take 42 s, and 21 of it 45."""
    monkeypatch.setattr(calibrate, "_step_seconds", lambda config, choices, model, patience: math.log2(choices.rows))
    monkeypatch.setattr(calibrate, "_evaluation_seconds", lambda choices, model, data: 0.5)
    config = ramped(small_run, minutes=43 / 60, steps=600)
    assert train(config).step == 20
    assert rows_of(config) == [2] * 6 + [4] * 6 + [8] * 8


def test_minutes_for_the_rest_of_a_run_are_of_the_stages_that_are_left(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_step_seconds", lambda config, choices, model, patience: math.log2(choices.rows))
    monkeypatch.setattr(calibrate, "_evaluation_seconds", lambda choices, model, data: 0.5)
    config = ramped(small_run, steps=20)
    train(changed(config, stop_at_loss=1e9, eval_every=8))  # ends after step 8
    steps = train(changed(config, minutes=30.5 / 60)).step

    def seconds(last: int) -> float:
        return sum(math.log2(rows) for rows in slow_rows(RAMP, 8, last)[8:])

    assert seconds(steps) <= 30 < seconds(steps + 1)


def test_the_first_stage_needs_a_sequence_for_each_rank(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(ConfigError, match="a step has 2 sequences for 3 ranks"):
        train(ramped(small_run))


def test_the_position_follows_from_the_checkpoint_alone(small_run: RunConfig) -> None:
    config = ramped(small_run)
    train(config)
    state = json.loads((checkpoint.committed(RunDirectory(Path(config.train.out)))[-1].path / "state.json").read_text())
    schedule = Position(**state).schedule(32)
    assert [schedule.position(step) // 32 for step in (0, 6, 12, 20)] == [0, 12, 36, 100]
    assert TokenDataset.open(Path(config.data.data), "train").token_count > 100
