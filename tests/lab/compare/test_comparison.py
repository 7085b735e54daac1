"""Complete comparisons of synthetic runs with a known answer."""

import json
import math
from pathlib import Path

import pytest

from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.lab.compare.comparison import Comparison, compare_runs
from synthetic_runs import NATS_TO_BITS_PER_BYTE, write_group, write_run

BASE = {1: 3.00, 2: 3.02, 3: 2.98, 4: 3.01}
OTHER_DATA = {"data": {"fingerprint": "e" * 64, "tokenizer": "gpt2", "vocab_size": 50257, "val_tokens": 9_000}}


def shifted(by: float, first_seed: int = 1) -> dict[int, float]:
    """The losses of `BASE`, shifted, with a little noise of their own."""
    losses = zip(BASE.values(), (0.003, -0.002, -0.004, 0.001), strict=True)
    return {seed: loss + by + own for seed, (loss, own) in enumerate(losses, first_seed)}


def compared(tmp_path: Path, *groups: dict[int, float], **options: object) -> Comparison:
    """Compare groups of runs with these final losses; they differ in their learning rate."""
    paths = []
    for number, losses in enumerate(groups):
        paths += write_group(tmp_path / f"g{number}", losses, settings={"lr": 0.01 * (number + 1)}, **options)
    return compare_runs(paths)


def test_the_verdict_is_that_of_the_known_difference(tmp_path: Path) -> None:
    """Equal seeds are paired: their noise of 0.017 is shared, and 0.003 remain."""
    cases = [
        (-0.2, 1, "better"),
        (-0.2, 11, "better"),
        (0.2, 1, "worse"),
        (0.2, 11, "worse"),
        (0.0005, 1, "inside the noise"),
        (0.0005, 11, "inside the noise"),
        (0.012, 1, "worse"),
        (0.012, 11, "inside the noise"),
    ]
    for number, (by, first_seed, word) in enumerate(cases):
        found = compared(tmp_path / str(number), BASE, shifted(by, first_seed))
        verdict = found.verdicts[0]
        assert verdict.verdict == word, (by, first_seed)
        assert found.differing == {"lr": [0.01, 0.02]}
        assert ("paired by seed" in verdict.sentence) == (first_seed == 1)
        assert "Welch" in verdict.sentence
        assert "at the end: B - A = " in verdict.sentence


def test_inside_the_noise_reports_about_how_many_seeds_would_settle_it(tmp_path: Path) -> None:
    verdict = compared(tmp_path / "a", BASE, shifted(0.012, first_seed=11)).verdicts[0]
    assert verdict.seeds_needed > 4
    assert f"About {verdict.seeds_needed} seeds each ({verdict.seeds_needed - 4} more)" in verdict.sentence
    commands = [command.partition(" --seed ")[0] for command in verdict.commands]
    assert commands == [f"quill train {tmp_path}/a/g0-seed-1"] + [f"quill train {tmp_path}/a/g1-seed-11"] * (
        len(commands) - 1
    )
    verdict = compared(tmp_path / "b", BASE, {11: 3.0, 12: 3.02, 13: 2.98, 14: 3.0101}).verdicts[0]
    assert "More than 100 seeds each" in verdict.sentence
    assert (verdict.seeds_needed, verdict.commands) == (None, ())


def test_too_few_seeds_give_no_verdict_and_the_commands_that_give_both_groups_the_same_seeds(tmp_path: Path) -> None:
    verdict = compared(tmp_path / "a", {1: 3.0}, {1: 2.0}).verdicts[0]
    assert verdict.verdict == "no verdict"
    assert "A has one seed and B has one seed" in verdict.sentence
    assert verdict.commands == tuple(f"quill train {tmp_path}/a/g{n}-seed-1 --seed 2 --seeds 2" for n in (0, 1))
    assert compared(tmp_path / "b", {2: 3.0}, {1: 2.0, 3: 2.0}).verdicts[0].commands == (
        f"quill train {tmp_path}/b/g0-seed-2 --seed 1 --seeds 1",
        f"quill train {tmp_path}/b/g0-seed-2 --seed 3 --seeds 1",
        f"quill train {tmp_path}/b/g1-seed-1 --seed 2 --seeds 1",
    )
    minutes = {"minutes": 2.0, "steps": 600}
    paths = [write_run(tmp_path / f"run {lr}", steps=77, settings=minutes | {"lr": lr}) for lr in (0.01, 0.02)]
    assert compare_runs(paths).verdicts[0].commands[0] == f"quill train '{paths[0]}' --steps 77 --seed 2 --seeds 2"


def test_runs_of_one_experiment_are_the_noise(tmp_path: Path) -> None:
    found = compared(tmp_path, BASE)
    assert (len(found.groups), found.differing, found.contrasts) == (1, {}, [])
    assert found.verdicts[0].verdict == "inside the noise"
    assert "4 runs differ in nothing but the seed" in found.verdicts[0].sentence
    assert "3.0025 ± 0.0171 nats per token" in found.verdicts[0].sentence


def test_a_setting_without_effect_is_reported_as_such(tmp_path: Path) -> None:
    verdict = compared(tmp_path, BASE, BASE).verdicts[0]
    assert verdict.verdict == "inside the noise"
    assert "the same to the last digit, seed by seed: what differs has no effect" in verdict.sentence


def test_p_values_are_adjusted_for_the_number_of_comparisons_with_the_first_group(tmp_path: Path) -> None:
    """A single 0.0055 is outside the paired interval; as one of three it is not (Holm)."""
    alone = compared(tmp_path / "two", BASE, shifted(0.0055))
    among = compared(tmp_path / "four", BASE, shifted(0.0055), shifted(0.2), shifted(0.0001))
    assert alone.verdicts[0].verdict == "worse"
    assert [(v.group, v.baseline, v.verdict) for v in among.verdicts] == [
        ("B", "A", "inside the noise"),
        ("C", "A", "worse"),
        ("D", "A", "inside the noise"),
    ]
    assert "That excludes 0, but it is one of 3 comparisons (Holm's p 0.0" in among.verdicts[0].sentence
    assert among.verdicts[0].seeds_needed is None
    assert any("3 comparisons" in note for note in among.notes)
    assert not any("comparisons" in note for note in alone.notes)


def test_only_bits_per_byte_are_compared_across_tokenizers(tmp_path: Path) -> None:
    paths = write_group(tmp_path / "a", BASE)
    paths += write_group(tmp_path / "b", {s: loss + 1 for s, loss in BASE.items()}, environment=OTHER_DATA)
    found = compare_runs(paths)
    assert {measure.name for measure in found.measures} == {"val_bpb"}
    assert "Validation text at the end: B - A = +1.5000 bits per byte" in found.verdicts[0].sentence
    assert any("only bits per byte" in note for note in found.notes)
    assert {"data", "tokenizer"} <= found.differing.keys()


def test_notes_report_other_validation_text_other_lengths_and_minutes(tmp_path: Path) -> None:
    data = {"fingerprint": "f" * 64, "tokenizer": "byte", "vocab_size": 257, "val_tokens": 500}
    paths = write_group(tmp_path / "a", BASE)
    found = compare_runs([*paths, *write_group(tmp_path / "b", BASE, environment={"data": data})])
    assert any("different numbers of tokens (A 20,000, B 500)" in note for note in found.notes)
    minutes = {"minutes": 1.0, "steps": 600}
    paths = [write_run(tmp_path / str(s), seed=s, steps=steps, settings=minutes) for s, steps in ((1, 90), (2, 100))]
    found = compare_runs(paths)
    assert found.differing == {"steps": [90, 100]}
    assert any("chosen by --minutes; --seeds N" in note for note in found.notes)
    paths = write_group(tmp_path / "c", {1: 3.0, 2: 3.1})  # 100 steps; the others were at 3.5 after 100 of 200
    paths += [write_run(tmp_path / f"d{s}", seed=s, steps=200, validation=[3.5, 2.5 + s / 10]) for s in (1, 2)]
    found = compare_runs(paths)
    at_step = next(one for one in found.measures if (one.name, one.over) == ("val_loss", "step"))
    assert at_step.at == 100
    assert [sample.mean for sample in at_step.samples] == pytest.approx([3.05, 3.5])
    assert found.verdicts[0].sentence.count("at the end") == 1
    assert any("differ in length" in note for note in found.notes)


def test_unfinished_runs_are_left_out_if_others_of_the_group_are_finished(tmp_path: Path) -> None:
    paths = write_group(tmp_path / "a", BASE)
    paths += write_group(tmp_path / "b", shifted(0.2), settings={"lr": 1.0})
    paths.append(write_run(tmp_path / "b-seed-5", seed=5, validation=9.0, until=50, settings={"lr": 1.0}))
    found = compare_runs(paths)
    assert found.groups[1].seeds == [1, 2, 3, 4]
    assert found.notes == [f"{paths[-1]} is left out: it is not finished (step 50 of 100); the others of its group are"]
    assert found.verdicts[0].verdict == "worse"
    running = compared(tmp_path / "running", BASE, shifted(0.2), until=50)
    assert "at 50,000 tokens: B - A = +0.19" in running.verdicts[0].sentence
    assert [note for note in running.notes if "is not finished (step 50 of 100, 50 of 100" in note]


def test_diverged_runs_give_no_verdict(tmp_path: Path) -> None:
    paths = write_group(tmp_path / "a", BASE)
    some = write_group(tmp_path / "b", shifted(-0.2), settings={"lr": 1.0})
    nan = [{"step": 60, "train_loss": math.nan, "diverged": True}]
    some.append(write_run(tmp_path / "b-seed-5", seed=5, until=50, lines=nan[:1], settings={"lr": 1.0}))
    verdict = compare_runs([*paths, *some]).verdicts[0]
    assert verdict.verdict == "no verdict"
    assert f"{some[-1]} diverged, and the mean of the others would be too good" in verdict.sentence
    every = [write_run(tmp_path / f"c-{s}", seed=s, validation=[], lines=nan, settings={"lr": 1.0}) for s in (1, 2)]
    assert [(verdict.verdict, verdict.sentence) for verdict in compare_runs([*paths, *every]).verdicts] == [
        (
            "no verdict",
            "c-* against A: no verdict. 2 of its 2 runs diverged, and none has a validation loss to compare.",
        )
    ]


def test_runs_without_an_evaluation_are_left_out(tmp_path: Path) -> None:
    empty = write_run(tmp_path / "empty", seed=9, validation=[], settings={"lr": 1.0})
    found = compare_runs([empty, *write_group(tmp_path / "a", BASE)])
    assert [group.label for group in found.groups] == ["a"]
    assert found.notes == [f"{empty} is left out: it has no validation loss yet (step 0 of 100)"]
    with pytest.raises(CheckpointError, match=r"none of these runs has a validation loss yet: .*empty \(step 0\)"):
        compare_runs([empty, write_run(tmp_path / "empty2", validation=[])])


def test_runs_without_a_common_place_give_no_verdict(tmp_path: Path) -> None:
    for lr in (0.003, 1.0):  # one group, two groups
        early = write_run(tmp_path / f"a{lr}", validation=[4.0], until=20)
        late = write_run(tmp_path / f"b{lr}", seed=2, validation=[3.0], until=60, settings={"lr": lr})
        found = compare_runs([early, late])
        assert found.measures == []
        assert found.verdicts[0].verdict == "no verdict"
        assert "No step, token count or time is common to all evaluations" in found.verdicts[0].sentence


def test_a_run_named_twice_is_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="1 run named; a comparison needs two or more"):
        compare_runs([run, "a", "./a/"])
    other = write_run(tmp_path / "b", settings={"lr": 1.0})
    assert [group.label for group in compare_runs([run, other, "a"]).groups] == ["a", "b"]  # the first is A


def test_repeated_steps_and_a_torn_line_of_a_resumed_run_are_read_correctly(tmp_path: Path) -> None:
    again = [{"step": s, "val_loss": loss, "tokens": 1000 * s} for s, loss in ((50, 3.2), (100, 2.5))]
    run = write_run(tmp_path / "a", validation=[4.0, 3.6], lines=again)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "validation_lo')
    found = compare_runs([run, write_run(tmp_path / "b", seed=2, validation=2.7)])
    end = next(one for one in found.measures if (one.name, one.over) == ("val_loss", "end"))
    assert end.samples[0].by_seed == {1: 2.5, 2: 2.7}


def test_the_json_has_everything_and_no_nan(tmp_path: Path) -> None:
    found = compared(tmp_path, BASE, {1: 2.9})
    written = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert [group["name"] for group in written["groups"]] == ["A", "B"]
    run = {"path": f"{tmp_path}/g1-seed-1", "seed": 1, "step": 100, "steps": 100, "finished": True, "used": True}
    assert written["groups"][1]["runs"][0] == run
    end = next(one for one in written["measures"] if (one["name"], one["over"]) == ("val_bpb", "end"))
    assert (end["at"], end["unit"]) == (None, "bits per byte")
    assert end["groups"]["A"]["mean"] == pytest.approx(3.0025 * NATS_TO_BITS_PER_BYTE)
    loss = pytest.approx(2.9 * NATS_TO_BITS_PER_BYTE)
    assert end["groups"]["B"] == {"mean": loss, "standard_deviation": None, "n": 1, "by_seed": {"1": loss}}
    assert written["verdicts"][0]["verdict"] == "no verdict"
    assert written["contrasts"][0]["intervals"] == []
