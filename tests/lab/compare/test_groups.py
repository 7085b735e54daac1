"""What makes two runs the same experiment: every setting either counts or does not, and each is tried."""

from pathlib import Path

from quillgpt.config import flatten, group_of
from quillgpt.lab.compare.groups import NOT_THE_EXPERIMENT, common_name, differing, differing_machines, grouped, letters
from quillgpt.lab.run_record import read_run
from quillgpt.recipes import recipe_config
from synthetic_runs import write_group, write_run

DEBUG = flatten(recipe_config("debug"))
RUNTIME = {"batch_tokens", "batch_size", "gradient_accumulation_steps", "minutes", "steps", "vocab_size"} | {
    *("eval_tokens", "eval_iters", "dtype", "compile"),
    *(name for name, group in group_of().items() if group == "data"),
}
"""settings whose resolved values are in environment.json"""
OTHER_TEXT = {
    "batch_ramp": "0.5@0,1@0.5",
    "float32_matmul_precision": "highest",
    "init": "gpt2",
    "device": "cuda",
    "dist_backend": "gloo",
    "track": "wandb",
}
RECORDED = {
    "device": "cpu",
    "dtype": "fp32",
    "threads": 1,
    "compile": False,
    "global_batch_size": 16,
    "micro_batch_size": 16,
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


def groups_of(tmp_path: Path, *runs: dict) -> tuple[list, list[str]]:
    """The groups of runs 0, 1, ... with seeds 0, 1, ... unless given, and the notes."""
    paths = [write_run(tmp_path / str(i), **{"seed": i} | run) for i, run in enumerate(runs)]
    return grouped([read_run(path) for path in paths])


def seeds_by_group(tmp_path: Path, *runs: dict) -> list[list[int]]:
    return [group.seeds for group in groups_of(tmp_path, *runs)[0]]


def test_every_setting_counts_except_bookkeeping_and_machine(tmp_path: Path) -> None:
    assert DEBUG.keys() >= NOT_THE_EXPERIMENT
    wrong = []
    for name in sorted(DEBUG.keys() - RUNTIME - {"seed", "out"}):
        plain = {"init": "gpt2"} if name == "lora_rank" else {}
        settings = plain | {name: changed(name)}
        groups, notes = groups_of(tmp_path / name, {"settings": plain}, {"settings": settings})
        counts = name not in NOT_THE_EXPERIMENT
        expected = [(DEBUG | plain)[name], settings[name]] if counts else None
        if differing(groups).get(name) != expected or len(groups) != 1 + counts or notes:
            wrong.append((name, differing(groups), notes))
    assert not wrong


def test_data_counts_by_its_fingerprint_and_not_by_its_place(tmp_path: Path) -> None:
    moved = {"settings": {"data": "elsewhere", "source": "text", "path": "a/b", "documents": 7}}
    other = {"data": {"fingerprint": "e" * 64, "tokenizer": "byte", "vocab_size": 257, "val_tokens": 20_000}}
    assert seeds_by_group(tmp_path / "a", {}, moved, {"environment": other}) == [[0, 1], [2]]
    unknown = {"environment": {"data": {}}}
    assert seeds_by_group(tmp_path / "b", unknown, unknown | {"settings": {"documents": 7}}) == [[0], [1]]


def test_resolved_values_count_and_not_the_way_to_them(tmp_path: Path) -> None:
    """Steps chosen by `minutes`; the batch however it is divided; dtype and compilation that `auto` chose."""
    minutes = {"steps": 100, "settings": {"minutes": 1.0, "steps": 600}}
    groups, _ = groups_of(tmp_path / "steps", {}, minutes, {"steps": 101})
    assert [group.seeds for group in groups] == [[0, 1], [2]]
    assert differing(groups) == {"steps": [100, 101]}
    divided = {"settings": {"batch_size": 4, "gradient_accumulation_steps": 4}, "environment": {"runtime": RECORDED}}
    smaller = {"environment": {"runtime": RECORDED | {"global_batch_size": 4}}}
    groups, _ = groups_of(tmp_path / "batch", {}, divided, smaller)
    assert differing(groups) == {"batch_tokens": [16 * 64, 4 * 64]}
    assert [group.seeds for group in groups] == [[0, 1], [2]]
    for name, value in (("dtype", "bf16"), ("compile", True)):
        groups, _ = groups_of(tmp_path / name, {}, {"environment": {"runtime": RECORDED | {name: value}}})
        assert differing(groups).keys() == {name}


def test_code_counts_by_its_fingerprint_else_its_commit_else_the_version(tmp_path: Path) -> None:
    def runs(*environments: dict) -> list[dict]:
        return [{"environment": environment} for environment in environments]

    groups, notes = groups_of(tmp_path / "commit", {}, *runs({"commit": "fedcba987654-dirty"}))
    assert (differing(groups), notes) == ({"code": ["0123456789ab", "fedcba987654-dirty"]}, [])
    codes = [{"commit": "a", "code": "7" * 64}, {"commit": "b", "code": "7" * 64}, {"commit": "b", "code": "8" * 64}]
    groups, _ = groups_of(tmp_path / "code", *runs(*codes))
    assert [group.seeds for group in groups] == [[0, 1], [2]]
    assert differing(groups) == {"code": ["7" * 18, "8" * 18]}
    versions = [{"commit": "unknown", "quillgpt": version} for version in ("0.1", "0.1", "0.2")]
    assert seeds_by_group(tmp_path / "version", *runs(*versions)) == [[0, 1], [2]]


def test_a_seed_counts_once(tmp_path: Path) -> None:
    groups, notes = groups_of(tmp_path, {"seed": 1}, {"seed": 1, "settings": {"log_every": 7}}, {"seed": 2})
    assert [group.seeds for group in groups] == [[1, 2]]
    assert notes == [f"{tmp_path / '1'} is left out: the same experiment and seed 1 as {tmp_path / '0'}"]


def test_differences_of_the_machines_are_reported_separately(tmp_path: Path) -> None:
    runs = [
        {"settings": {"lr": lr}, "environment": {"runtime": RECORDED | {"threads": threads}}}
        for lr, threads in ((1e-3, 1), (2e-3, 1), (2e-3, 2))
    ]
    groups, _ = groups_of(tmp_path, *runs)
    assert differing_machines(groups) == {"threads": ["1", "1, 2"]}


def test_a_malformed_environment_counts_as_none(tmp_path: Path) -> None:
    malformed = [{"runtime": 7, "data": [], "steps": "many", "commit": None}, {"data": {"fingerprint": 5}}]
    for number, environment in enumerate(malformed):
        assert len(groups_of(tmp_path / str(number), {"environment": environment}, {})[0]) == 2


def test_a_group_is_named_by_what_its_runs_names_have_in_common(tmp_path: Path) -> None:
    groups, _ = grouped([read_run(path) for path in write_group(tmp_path / "base", {1: 3.0, 2: 3.0})])
    assert groups[0].label == "base"
    assert common_name(["base-seed-1"]) == "base-seed-1"
    assert common_name(["base-1", "base-2"]) == "base-*"
    assert common_name(["a", "b", "c"]) == "a and 2 more"
    assert [letters(number) for number in (0, 1, 25, 26, 27, 701, 702)] == ["A", "B", "Z", "AA", "AB", "ZZ", "AAA"]
