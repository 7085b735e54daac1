"""Whole comparisons of synthetic runs whose answer is known."""

import json
import math
from pathlib import Path

import pytest

from quillgpt.compare import Comparison, compare_runs
from quillgpt.errors import CheckpointError, ConfigError
from synthetic_runs import NATS_TO_BITS_PER_BYTE, write_group, write_run

BASE = {1: 3.00, 2: 3.02, 3: 2.98, 4: 3.01}
OTHER_DATA = {"data": {"fingerprint": "e" * 64, "tokenizer": "gpt2", "vocab_size": 50257, "held_out_tokens": 9_000}}


def shifted(by: float, first_seed: int = 1) -> dict[int, float]:
    """The losses of `BASE`, moved, with a little luck of their own."""
    return {
        seed: loss + by + own
        for seed, (loss, own) in enumerate(zip(BASE.values(), (0.003, -0.002, -0.004, 0.001), strict=True), first_seed)
    }


def compared(tmp_path: Path, *groups: dict[int, float], **options: object) -> Comparison:
    """Groups of runs with these final losses; they differ in their rate."""
    paths = []
    for number, losses in enumerate(groups):
        settings = {"lr": 0.01 * (number + 1)}
        paths += write_group(tmp_path / f"g{number}", losses, settings=settings, **options)
    return compare_runs(paths)


@pytest.mark.parametrize("first_seed", [1, 11], ids=["same seeds", "other seeds"])
@pytest.mark.parametrize(("by", "word"), [(-0.2, "better"), (0.2, "worse"), (0.0005, "inside the noise")])
def test_the_verdict_is_known(by: float, word: str, first_seed: int, tmp_path: Path) -> None:
    found = compared(tmp_path, BASE, shifted(by, first_seed))
    verdict = found.verdicts[0]
    assert verdict.word == word
    assert found.differing == {"lr": [0.01, 0.02]}
    assert ("paired by seed" in verdict.sentence) == (first_seed == 1)
    assert "Welch" in verdict.sentence
    assert "at the end: B - A = " in verdict.sentence


def test_pairs_see_what_groups_do_not(tmp_path: Path) -> None:
    """The luck of the seeds is 0.017 and shared; what is left of it is 0.003."""
    assert compared(tmp_path / "same", BASE, shifted(0.012)).verdicts[0].word == "worse"
    assert compared(tmp_path / "other", BASE, shifted(0.012, first_seed=11)).verdicts[0].word == "inside the noise"


def test_inside_the_noise_tells_about_how_many_seeds_would_settle_it(tmp_path: Path) -> None:
    verdict = compared(tmp_path, BASE, shifted(0.012, first_seed=11)).verdicts[0]
    assert verdict.seeds_needed > 4
    assert f"About {verdict.seeds_needed} seeds each ({verdict.seeds_needed - 4} more)" in verdict.sentence
    assert [command.partition(" --seed ")[0] for command in verdict.commands] == [
        f"quill train {tmp_path / 'g0-seed-1'}",
        *[f"quill train {tmp_path / 'g1-seed-11'}"] * (len(verdict.commands) - 1),
    ]


def test_a_difference_of_next_to_nothing_is_not_worth_more_seeds(tmp_path: Path) -> None:
    verdict = compared(tmp_path, BASE, {11: 3.0, 12: 3.02, 13: 2.98, 14: 3.0101}).verdicts[0]
    assert "More than 100 seeds each" in verdict.sentence
    assert (verdict.seeds_needed, verdict.commands) == (0, ())


def test_one_seed_each_is_no_verdict_and_says_what_to_run(tmp_path: Path) -> None:
    verdict = compared(tmp_path, {1: 3.0}, {1: 2.0}).verdicts[0]
    assert verdict.word == "no verdict"
    assert "A has one seed and B has one seed" in verdict.sentence
    assert verdict.commands == tuple(f"quill train {tmp_path / f'g{n}-seed-1'} --seed 2 --seeds 2" for n in (0, 1))


def test_what_to_run_gives_both_groups_the_same_seeds(tmp_path: Path) -> None:
    verdict = compared(tmp_path, {2: 3.0}, {1: 2.0, 3: 2.0}).verdicts[0]
    assert verdict.commands == (
        f"quill train {tmp_path / 'g0-seed-2'} --seed 1 --seeds 1",
        f"quill train {tmp_path / 'g0-seed-2'} --seed 3 --seeds 1",
        f"quill train {tmp_path / 'g1-seed-1'} --seed 2 --seeds 1",
    )


def test_repeats_of_a_run_of_minutes_get_its_steps(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / f"run {lr}", steps=77, settings={"minutes": 2.0, "steps": 600, "lr": lr})
        for lr in (0.01, 0.02)
    ]
    assert compare_runs(paths).verdicts[0].commands[0] == f"quill train '{paths[0]}' --steps 77 --seed 2 --seeds 2"


def test_runs_that_differ_in_nothing_but_the_seed_are_the_noise(tmp_path: Path) -> None:
    found = compared(tmp_path, BASE)
    assert (len(found.groups), found.differing, found.contrasts) == (1, {}, [])
    assert found.verdicts[0].word == "inside the noise"
    assert "4 runs differ in nothing but the seed" in found.verdicts[0].sentence
    assert "3.0025 ± 0.0171 nats per token" in found.verdicts[0].sentence


def test_a_setting_without_effect_is_told_as_such(tmp_path: Path) -> None:
    verdict = compared(tmp_path, BASE, BASE).verdicts[0]
    assert verdict.word == "inside the noise"
    assert "the same to the last digit, seed by seed: what differs has no effect" in verdict.sentence


def test_every_group_is_held_against_the_first_and_there_are_as_many_comparisons(tmp_path: Path) -> None:
    """Alone 0.0045 is outside the paired interval; as one of three it is not (Holm)."""
    alone = compared(tmp_path / "two", BASE, shifted(0.0055))
    among = compared(tmp_path / "four", BASE, shifted(0.0055), shifted(0.2), shifted(0.0001))
    assert alone.verdicts[0].word == "worse"
    assert [(v.group, v.baseline, v.word) for v in among.verdicts] == [
        ("B", "A", "inside the noise"),
        ("C", "A", "worse"),
        ("D", "A", "inside the noise"),
    ]
    assert "That excludes 0, but it is one of 3 comparisons (Holm's p 0.0" in among.verdicts[0].sentence
    assert among.verdicts[0].seeds_needed == 0
    assert any("3 comparisons" in note for note in among.notes)
    assert not any("comparisons" in note for note in alone.notes)


def test_another_tokenizer_leaves_bits_per_byte_alone(tmp_path: Path) -> None:
    paths = write_group(tmp_path / "a", BASE)
    paths += write_group(tmp_path / "b", {s: loss + 1 for s, loss in BASE.items()}, environment=OTHER_DATA)
    found = compare_runs(paths)
    assert {measure.name for measure in found.measures} == {"held_out_bits_per_byte"}
    assert "Held-out text at the end: B - A = +1.5000 bits per byte" in found.verdicts[0].sentence
    assert any("only bits per byte" in note for note in found.notes)
    assert {"data", "tokenizer"} <= found.differing.keys()


def test_more_held_out_text_is_said(tmp_path: Path) -> None:
    data = {"fingerprint": "f" * 64, "tokenizer": "byte", "vocab_size": 257, "held_out_tokens": 500}
    paths = write_group(tmp_path / "a", BASE)
    found = compare_runs([*paths, *write_group(tmp_path / "b", BASE, environment={"data": data})])
    assert any("different numbers of tokens (A 20,000, B 500)" in note for note in found.notes)


def test_runs_of_different_length_meet_where_both_have_been(tmp_path: Path) -> None:
    """A has 100 steps; B has 200 and was at 3.5 after 100 of them."""
    paths = write_group(tmp_path / "a", {1: 3.0, 2: 3.1})
    paths += [write_run(tmp_path / f"b{s}", seed=s, steps=200, held_out=[3.5, 2.5 + s / 10]) for s in (1, 2)]
    found = compare_runs(paths)
    at_step = next(one for one in found.measures if (one.name, one.over) == ("held_out_loss", "step"))
    assert at_step.at == 100
    assert [sample.mean for sample in at_step.samples] == pytest.approx([3.05, 3.5])
    assert found.verdicts[0].sentence.count("at the end") == 1
    assert any("differ in length" in note for note in found.notes)


def test_steps_that_minutes_chose_are_said_to_be_no_repeats(tmp_path: Path) -> None:
    minutes = {"minutes": 1.0, "steps": 600}
    paths = [write_run(tmp_path / str(s), seed=s, steps=steps, settings=minutes) for s, steps in ((1, 90), (2, 100))]
    found = compare_runs(paths)
    assert found.differing == {"steps": [90, 100]}
    assert any("chosen by --minutes; --seeds N" in note for note in found.notes)


def test_an_unfinished_run_is_left_out_where_others_are_finished(tmp_path: Path) -> None:
    paths = write_group(tmp_path / "a", BASE)
    paths += write_group(tmp_path / "b", shifted(0.2), settings={"lr": 1.0})
    paths.append(write_run(tmp_path / "b-seed-5", seed=5, held_out=9.0, until=50, settings={"lr": 1.0}))
    found = compare_runs(paths)
    assert found.groups[1].seeds == [1, 2, 3, 4]
    assert found.notes == [f"{paths[-1]} is left out: it is not finished (step 50 of 100); the others of its group are"]
    assert found.verdicts[0].word == "worse"


def test_groups_that_still_run_are_compared_as_far_as_they_are(tmp_path: Path) -> None:
    found = compared(tmp_path, BASE, shifted(0.2), until=50)
    assert "at 50,000 tokens: B - A = +0.19" in found.verdicts[0].sentence
    assert [note for note in found.notes if "is not finished (step 50 of 100, 50 of 100" in note]


def test_a_run_that_diverged_takes_the_verdict_with_it(tmp_path: Path) -> None:
    paths = write_group(tmp_path / "a", BASE)
    paths += write_group(tmp_path / "b", shifted(-0.2), settings={"lr": 1.0})
    nan = [{"step": 60, "loss": math.nan}]
    paths.append(write_run(tmp_path / "b-seed-5", seed=5, until=50, lines=nan, settings={"lr": 1.0}))
    verdict = compare_runs(paths).verdicts[0]
    assert verdict.word == "no verdict"
    assert f"{paths[-1]} diverged, and the mean of the others would flatter" in verdict.sentence


def test_runs_that_were_never_evaluated_are_left_out(tmp_path: Path) -> None:
    empty = write_run(tmp_path / "empty", seed=9, held_out=[], settings={"lr": 1.0})
    found = compare_runs([empty, *write_group(tmp_path / "a", BASE)])
    assert [group.label for group in found.groups] == ["a"]
    assert found.notes == [f"{empty} is left out: it has no held-out loss yet (step 0 of 100)"]
    with pytest.raises(CheckpointError, match=r"none of these runs has a held-out loss yet: .*empty \(step 0\)"):
        compare_runs([empty, write_run(tmp_path / "empty2", held_out=[])])


def test_a_run_named_twice_is_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="1 run named; a comparison needs two or more"):
        compare_runs([run, "a", "./a/"])


def test_a_resumed_run_is_read_to_its_end(tmp_path: Path) -> None:
    """As a killed run leaves it that goes on before its metrics are cut: steps twice, and a torn line."""
    again = [
        {"step": 50, "held_out_loss": 3.2, "tokens": 50_000},
        {"step": 100, "held_out_loss": 2.5, "tokens": 100_000},
    ]
    run = write_run(tmp_path / "a", held_out=[4.0, 3.6], lines=again)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "held_out_lo')
    found = compare_runs([run, write_run(tmp_path / "b", seed=2, held_out=2.7)])
    end = next(one for one in found.measures if (one.name, one.over) == ("held_out_loss", "end"))
    assert end.samples[0].by_seed == {1: 2.5, 2: 2.7}


def test_the_json_has_all_of_it_and_no_nan(tmp_path: Path) -> None:
    found = compared(tmp_path, BASE, {1: 2.9})
    written = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert [group["name"] for group in written["groups"]] == ["A", "B"]
    assert written["groups"][1]["runs"][0] == {
        "path": str(tmp_path / "g1-seed-1"),
        "seed": 1,
        "step": 100,
        "steps": 100,
        "finished": True,
        "used": True,
    }
    end = next(one for one in written["measures"] if (one["name"], one["over"]) == ("held_out_bits_per_byte", "end"))
    assert end["groups"]["A"]["mean"] == pytest.approx(3.0025 * NATS_TO_BITS_PER_BYTE)
    assert end["groups"]["B"] == {
        "mean": pytest.approx(2.9 * NATS_TO_BITS_PER_BYTE),
        "standard_deviation": None,
        "n": 1,
        "by_seed": {"1": pytest.approx(4.35)},
    }
    assert written["verdicts"][0]["verdict"] == "no verdict"
    assert written["contrasts"][0]["intervals"] == []


def test_a_group_of_which_every_run_diverged_gets_no_verdict(tmp_path: Path) -> None:
    paths = write_group(tmp_path / "a", BASE)
    nan = [{"step": 60, "loss": math.nan, "diverged": True}]
    paths += [write_run(tmp_path / f"b-seed-{s}", seed=s, held_out=[], lines=nan, settings={"lr": 1.0}) for s in (1, 2)]
    found = compare_runs(paths)
    assert [verdict.word for verdict in found.verdicts] == ["no verdict"]
    assert found.verdicts[0].sentence == (
        "b against A: no verdict. 2 of its 2 runs diverged, and none has a held-out loss to compare."
    )


@pytest.mark.parametrize("lr", [0.003, 1.0], ids=["one group", "two groups"])
def test_runs_that_were_never_at_the_same_place_get_no_verdict(lr: float, tmp_path: Path) -> None:
    early = write_run(tmp_path / "a", held_out=[4.0], until=20)
    late = write_run(tmp_path / "b", seed=2, held_out=[3.0], until=60, settings={"lr": lr})
    found = compare_runs([early, late])
    assert found.measures == []
    assert found.verdicts[0].word == "no verdict"
    assert "no step, token count or second that their evaluations have in common" in found.verdicts[0].sentence
