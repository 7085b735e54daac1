"""What makes two runs the same experiment: every setting is either part of it or not, and each is tried."""

from pathlib import Path

import pytest

from quillgpt.compare.groups import NOT_THE_EXPERIMENT, common_name, differing, differing_besides, grouped, letters
from quillgpt.config import Scalar, flatten, group_of
from quillgpt.recipes import load_recipe
from quillgpt.run_record import RunRecord, read_run
from synthetic_runs import write_group, write_run

DEBUG = flatten(load_recipe("debug"))
RESOLVED = {"batch_tokens", "batch_size", "gradient_accumulation_steps", "minutes", "steps", "vocab_size"} | {
    *("eval_tokens", "eval_iters", "dtype", "compile"),
    *(name for name, group in group_of().items() if group == "data"),
}
"""settings in whose place a run's environment.json says what they came to"""
AS_ASKED = sorted(DEBUG.keys() - RESOLVED - NOT_THE_EXPERIMENT - {"seed"})
OTHER_TEXT = {
    "batch_ramp": "0.5@0,1@0.5",
    "float32_matmul_precision": "highest",
    "init": "gpt2",
}


def changed(name: str) -> object:
    """Another value of a setting than `debug` has."""
    value = DEBUG[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return OTHER_TEXT.get(name, f"{value}2")
    if name in ("n_embd", "n_head"):
        return value * 2
    return value + 1 if isinstance(value, int) else value / 2 or 0.125


def records(*paths: Path) -> list[RunRecord]:
    return [read_run(path) for path in paths]


def group_count(*paths: Path) -> int:
    return len(grouped(records(*paths))[0])


@pytest.mark.parametrize("name", AS_ASKED)
def test_another_value_of_a_setting_is_another_experiment(name: str, tmp_path: Path) -> None:
    settings = {name: changed(name)} | ({"init": "gpt2"} if name == "lora_rank" else {})
    plain = {"init": "gpt2"} if name == "lora_rank" else {}
    paths = write_run(tmp_path / "a", settings=plain), write_run(tmp_path / "b", seed=2, settings=settings)
    groups, notes = grouped(records(*paths))
    assert (len(groups), notes) == (2, [])
    assert differing(groups)[name] == [read_run(path).settings[name] for path in paths]


@pytest.mark.parametrize("name", sorted(NOT_THE_EXPERIMENT - {"out"}))
def test_where_a_run_writes_and_what_it_logs_leaves_the_experiment(name: str, tmp_path: Path) -> None:
    value = {"device": "cuda", "dist_backend": "gloo", "track": "wandb"}.get(name, changed(name))
    paths = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=2, settings={name: value})
    groups, _ = grouped(records(*paths))
    assert [group.seeds for group in groups] == [[1, 2]]


@pytest.mark.parametrize("settings", [{"eval_tasks": "hellaswag:20"}, {"task_data": "elsewhere"}, {"eval_every": 7}])
def test_what_is_evaluated_meanwhile_leaves_the_experiment(settings: dict[str, Scalar], tmp_path: Path) -> None:
    assert group_count(write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=2, settings=settings)) == 1


def test_every_name_that_is_no_part_of_the_experiment_is_a_setting() -> None:
    assert DEBUG.keys() >= NOT_THE_EXPERIMENT


def test_data_is_told_apart_by_its_fingerprint_and_not_by_where_it_lay(tmp_path: Path) -> None:
    moved = {"data": "elsewhere", "source": "text", "path": "a/b", "documents": 7}
    paths = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=2, settings=moved)
    assert group_count(*paths) == 1
    other = {"data": {"fingerprint": "e" * 64, "tokenizer": "byte", "vocab_size": 257, "held_out_tokens": 20_000}}
    assert group_count(*paths, write_run(tmp_path / "c", seed=3, environment=other)) == 2


def test_without_a_fingerprint_the_settings_of_the_data_count(tmp_path: Path) -> None:
    old = {"data": {}}
    paths = (
        write_run(tmp_path / "a", environment=old),
        write_run(tmp_path / "b", seed=2, environment=old, settings={"documents": 7}),
    )
    assert group_count(*paths) == 2


def test_the_steps_count_whether_asked_for_or_chosen_by_minutes(tmp_path: Path) -> None:
    asked = write_run(tmp_path / "a", steps=100)
    chosen = write_run(tmp_path / "b", seed=2, steps=100, settings={"minutes": 2.0, "steps": 600})
    longer = write_run(tmp_path / "c", seed=3, steps=101, settings={"minutes": 2.0, "steps": 600})
    groups, _ = grouped(records(asked, chosen, longer))
    assert [group.seeds for group in groups] == [[1, 2], [3]]
    assert differing(groups) == {"steps": [100, 101]}


def test_the_global_batch_counts_and_not_how_it_is_cut(tmp_path: Path) -> None:
    choices = {"device": "cpu", "dtype": "fp32", "threads": 1, "compile": False, "batch_size": 4}
    paths = [
        write_run(tmp_path / "a"),
        write_run(
            tmp_path / "b",
            seed=2,
            settings={"batch_size": 4, "gradient_accumulation_steps": 4},
            environment={"choices": choices | {"rows": 16}},
        ),
        write_run(tmp_path / "c", seed=3, environment={"choices": choices | {"rows": 4}}),
    ]
    groups, _ = grouped(records(*paths))
    assert differing(groups) == {"batch_tokens": [16 * 64, 4 * 64]}


@pytest.mark.parametrize(("name", "value"), [("dtype", "bf16"), ("compile", True)])
def test_what_auto_came_to_counts(name: str, value: object, tmp_path: Path) -> None:
    choices = {"device": "cpu", "dtype": "fp32", "compile": False, "rows": 16, "batch_size": 16, name: value}
    paths = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=2, environment={"choices": choices})
    assert differing(grouped(records(*paths))[0]).keys() == {name}


def test_changed_code_is_another_experiment(tmp_path: Path) -> None:
    changed_code = write_run(tmp_path / "b", seed=1, environment={"commit": "fedcba987654-dirty"})
    groups, notes = grouped(records(write_run(tmp_path / "a"), changed_code))
    assert differing(groups) == {"code": ["0123456789ab", "fedcba987654-dirty"]}
    assert notes == []


def test_the_fingerprint_of_the_code_goes_before_its_commit(tmp_path: Path) -> None:
    codes = [{"commit": "a", "code": "7" * 64}, {"commit": "b", "code": "7" * 64}, {"commit": "b", "code": "8" * 64}]
    paths = [write_run(tmp_path / str(i), seed=i, environment=one) for i, one in enumerate(codes)]
    groups, _ = grouped(records(*paths))
    assert [group.seeds for group in groups] == [[0, 1], [2]]
    assert differing(groups) == {"code": ["7" * 18, "8" * 18]}


def test_without_a_checkout_the_version_stands_for_the_code(tmp_path: Path) -> None:
    versions = [{"commit": "unknown", "quillgpt": version} for version in ("0.1", "0.1", "0.2")]
    paths = [write_run(tmp_path / str(i), seed=i, environment=one) for i, one in enumerate(versions)]
    assert [group.seeds for group in grouped(records(*paths))[0]] == [[0, 1], [2]]


def test_a_seed_counts_once(tmp_path: Path) -> None:
    paths = (
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", settings={"log_every": 7}),
        write_run(tmp_path / "c", seed=2),
    )
    groups, notes = grouped(records(*paths))
    assert [group.seeds for group in groups] == [[1, 2]]
    assert notes == [f"{paths[1]} is left out: the same experiment and seed 1 as {paths[0]}"]


def test_the_machines_differences_stand_besides(tmp_path: Path) -> None:
    choices = {"device": "cpu", "dtype": "fp32", "compile": False, "rows": 16, "batch_size": 16}
    paths = [
        write_run(
            tmp_path / f"{lr}-{threads}",
            seed=threads,
            settings={"lr": lr},
            environment={"choices": choices | {"threads": threads}},
        )
        for lr, threads in ((1e-3, 1), (2e-3, 1), (2e-3, 2))
    ]
    groups, _ = grouped(records(*paths))
    assert differing_besides(groups) == {"threads": ["1", "1, 2"]}


@pytest.mark.parametrize(
    "environment", [{"choices": 7, "data": [], "steps": "many", "commit": None}, {"data": {"fingerprint": 5}}]
)
def test_an_environment_of_another_form_is_as_good_as_none(environment: dict, tmp_path: Path) -> None:
    assert group_count(write_run(tmp_path / "a", environment=environment), write_run(tmp_path / "b")) == 2


def test_a_group_is_called_what_its_runs_are(tmp_path: Path) -> None:
    groups, _ = grouped(records(*write_group(tmp_path / "base", {1: 3.0, 2: 3.0})))
    assert groups[0].label == "base"
    assert common_name(["base-seed-1"]) == "base-seed-1"
    assert common_name(["base-1", "base-2"]) == "base-*"
    assert common_name(["a", "b", "c"]) == "a and 2 more"
    assert [letters(number) for number in (0, 1, 25, 26, 27, 701, 702)] == ["A", "B", "Z", "AA", "AB", "ZZ", "AAA"]
