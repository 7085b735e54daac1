"""A run on disk: its config.toml is the run again, its metrics have each step once, the newest run is found."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quillgpt import files
from quillgpt.config import RunConfig, flatten, updated
from quillgpt.errors import CheckpointError, DiskError
from quillgpt.recipes import load_recipe, read_toml, recipe_names
from quillgpt.run_dir import append_metrics, config_toml, cut_metrics, newest_run, read_metrics

COUNTS = st.integers(0, 2**63 - 1)
SHARES = st.floats(0, 1, exclude_max=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
MENUS = {
    "errors": ["strict", "replace"],
    "dtype": ["auto", "fp32", "bf16", "fp16"],
    "compile": ["auto", "on", "off"],
    "float32_matmul_precision": ["highest", "high", "medium"],
    "dist_backend": ["auto", "nccl", "gloo"],
    "batch_ramp": ["", "0.5@0,1@0.25"],
}
RANGES: dict[str, st.SearchStrategy[Any]] = {
    **{name: st.sampled_from(entries) for name, entries in MENUS.items()},
    **{name: st.integers(1, 2**63 - 1) for name in ("eval_tokens", "log_every", "keep_last")},
    **dict.fromkeys(("dropout", "beta1", "beta2", "momentum"), SHARES),
    "n_layer": st.integers(1, 1000),
    "vocab_size": st.integers(1, 2**32),
    "lr": st.floats(1, 1e300),
    "min_lr": SHARES,
    "eps": st.floats(0, 1, exclude_min=True, exclude_max=True),
    "decay_fraction": st.floats(0, 1, exclude_min=True),
    "minutes": st.floats(0, 1e6),
    "threads": st.integers(0, 1024),
    "dist_timeout_seconds": st.integers(1, 10**6),
    "lora_rank": st.integers(0, 1 << 20),
    "lora_alpha": st.floats(0, 1e6, exclude_min=True),
    "pointwise_length_power": st.floats(0, 2),
    "logit_softcap": st.floats(0, 1e4),
}
APART = {"n_head", "n_embd", "context_length", "position", "batch_tokens", "gradient_accumulation_steps"}
BY_TYPE: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: COUNTS,
    float: st.floats(0, allow_infinity=False),
    str: TEXTS,
}


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    """Any settings that are possible."""
    values = {
        name: draw(RANGES.get(name, BY_TYPE[type(default)]))
        for name, default in flatten(RunConfig()).items()
        if name not in APART
    }
    values["n_head"] = draw(st.integers(1, 64))
    values["n_embd"] = values["n_head"] * 2 * draw(st.integers(1, 64))
    values["context_length"] = draw(st.integers(1, 1 << 24))
    values["position"] = draw(st.sampled_from(["learned", "rotary"]))
    if draw(st.booleans()):
        values["batch_tokens"] = values["context_length"] * draw(st.integers(1, 1000))
    else:
        values["gradient_accumulation_steps"] = draw(st.integers(1, 1000))
    if values["lora_rank"] and values["init"] == "scratch":
        values["lora_rank"] = 0
    return updated(RunConfig(), values, where="test")


@given(config=configs())
@settings(max_examples=60, deadline=None)
def test_a_saved_config_is_the_same_settings_again(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_bytes(config_toml(config).encode())
    again = load_recipe(str(path))
    without_out = flatten(config) | {"out": "runs/round-trip"}
    assert flatten(again) == without_out
    assert [type(value) for value in flatten(again).values()] == [type(value) for value in without_out.values()]
    assert config_toml(again) == config_toml(config)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipes_config_is_that_recipe_again(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.toml"
    path.write_text(config_toml(load_recipe(name)))
    assert load_recipe(str(path)) == load_recipe(name)


def test_a_saved_config_names_no_run_directory() -> None:
    assert "out" not in read_toml_text(config_toml(updated(RunConfig(), {"out": "here"}, where="test")))


def read_toml_text(text: str) -> set[str]:
    """The names that a recipe's text sets."""
    return {line.split(" = ")[0] for line in text.splitlines() if " = " in line}


def test_a_saved_config_sets_everything_else() -> None:
    assert read_toml_text(config_toml(RunConfig())) == flatten(RunConfig()).keys() - {"out"}


def test_metrics_come_back_as_they_were_written(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1 / 3 + step, "skipped": True} for step in range(3)]
    assert all(append_metrics(tmp_path / "metrics.jsonl", line) for line in lines)
    assert read_metrics(tmp_path / "metrics.jsonl") == lines


def test_numbers_that_json_lacks_become_words(tmp_path: Path) -> None:
    line = {"step": 1, "loss": math.nan, "gradient_norm": math.inf, "mfu": None}
    assert append_metrics(tmp_path / "metrics.jsonl", line)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": "nan", "gradient_norm": "inf", "mfu": None}]


def test_no_metrics_are_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_full_disk_loses_the_line_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, line: str) -> None:
        raise DiskError("full")

    append_metrics(tmp_path / "metrics.jsonl", {"step": 1})
    monkeypatch.setattr(files, "append_line", full)
    assert not append_metrics(tmp_path / "metrics.jsonl", {"step": 2})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', "\xff\xfe", "[3", "\0\0\0"])
def test_a_torn_line_is_left_out_and_cut_away(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + torn, encoding="latin-1")
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    cut_metrics(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("other", ["3", '"text"', "[1, 2]", "null"])
def test_a_line_that_is_no_record_is_left_out(other: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{other}\n')
    cut_metrics(path, 5)
    assert read_metrics(path) == [{"step": 1}]


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_cutting_keeps_the_steps_up_to_the_checkpoint(step: int, kept: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": number, "loss": 0.1}) + "\n" for number in (1, 2, 3)))
    cut_metrics(path, step)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3][:kept]


def test_the_newest_run_is_the_one_saved_last(tmp_path: Path) -> None:
    for age, name in enumerate(["never-saved", "being-saved", "newest", "older"]):
        step = {"never-saved": "", "being-saved": ".tmp-step-000001"}.get(name, "step-000001")
        (tmp_path / name / "checkpoints" / step).mkdir(parents=True)
        if step:
            (tmp_path / name / "checkpoints" / step / "manifest.json").touch()
        os.utime(tmp_path / name / "checkpoints", (10**9 - age, 10**9 - age))
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file").touch()
    assert newest_run(tmp_path) == tmp_path / "newest"


def test_without_a_run_the_error_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run in .*; train one first, for example `quill train"):
        newest_run(tmp_path / "runs")


def test_the_example_of_the_module_is_what_read_toml_reads(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(config_toml(RunConfig()))
    assert read_toml(path) == {name: value for name, value in flatten(RunConfig()).items() if name != "out"}
