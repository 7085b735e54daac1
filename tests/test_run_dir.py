"""A run on disk: its config.toml repeats the run, its metrics have each step once, and the newest run is found."""

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
from quillgpt.recipes import read_toml, recipe_config, recipe_names
from quillgpt.run_dir import append_metrics, config_toml, cut_metrics, newest_run, read_metrics

FRACTIONS = st.floats(0, 1, exclude_max=True)
RANGES: dict[str, st.SearchStrategy[Any]] = {
    "errors": st.sampled_from(["strict", "replace"]),
    "dtype": st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
    "compile": st.sampled_from(["auto", "on", "off"]),
    "float32_matmul_precision": st.sampled_from(["highest", "high", "medium"]),
    "dist_backend": st.sampled_from(["auto", "nccl", "gloo"]),
    "batch_ramp": st.sampled_from(["", "0.5@0,1@0.25"]),
    **{name: st.integers(1, 2**63 - 1) for name in ("eval_tokens", "log_every", "keep_last")},
    **dict.fromkeys(("dropout", "beta1", "beta2", "momentum", "min_lr"), FRACTIONS),
    "n_layer": st.integers(1, 1000),
    "vocab_size": st.integers(1, 2**32),
    "lr": st.floats(1, 1e300),
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
BY_TYPE: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(0, 2**63 - 1),
    float: st.floats(0, allow_infinity=False),
    str: st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
}


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    """Any possible settings."""
    values = {name: draw(RANGES.get(name, BY_TYPE[type(value)])) for name, value in flatten(RunConfig()).items()}
    values["n_head"] = draw(st.integers(1, 64))
    values["n_embd"] = values["n_head"] * 2 * draw(st.integers(1, 64))
    values["context_length"] = draw(st.integers(1, 1 << 24))
    values["position"] = draw(st.sampled_from(["learned", "rotary"]))
    is_in_tokens = draw(st.booleans())
    values["batch_tokens"] = values["context_length"] * draw(st.integers(1, 1000)) if is_in_tokens else 0
    values["gradient_accumulation_steps"] = 0 if is_in_tokens else draw(st.integers(1, 1000))
    values["lora_rank"] *= values["init"] != "scratch"
    return updated(RunConfig(), values, where="test")


@given(config=configs())
@settings(max_examples=40, deadline=None)
def test_a_saved_config_is_read_back_as_the_same_settings(
    config: RunConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_bytes(config_toml(config).encode())
    again = recipe_config(str(path))
    expected = flatten(config) | {"out": "runs/round-trip"}
    assert flatten(again) == expected
    assert [type(value) for value in flatten(again).values()] == [type(value) for value in expected.values()]
    assert config_toml(again) == config_toml(config)


def test_a_recipes_saved_config_is_that_recipe_with_all_settings_but_the_run_directory(tmp_path: Path) -> None:
    for name in recipe_names():
        path = tmp_path / f"{name}.toml"
        path.write_text(config_toml(recipe_config(name)))
        assert recipe_config(str(path)) == recipe_config(name), name
    path.write_text(config_toml(updated(RunConfig(), {"out": "here"}, where="test")))
    assert read_toml(path) == {name: value for name, value in flatten(RunConfig()).items() if name != "out"}


def test_metrics_are_read_back_as_written_and_numbers_that_json_lacks_become_words(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    lines = [{"step": step, "loss": 1 / 3 + step, "skipped": True} for step in range(3)]
    assert all(append_metrics(path, line) for line in lines)
    assert append_metrics(path, {"step": 3, "loss": math.nan, "norms": [math.inf, -math.inf, 1.0], "mfu": None})
    words = {"step": 3, "loss": "nan", "norms": ["inf", "-inf", 1.0], "mfu": None}
    assert read_metrics(path) == [*lines, words]


def test_a_full_disk_loses_the_line_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, line: str) -> None:
        raise DiskError("full")

    append_metrics(tmp_path / "metrics.jsonl", {"step": 1})
    monkeypatch.setattr(files, "append_line", full)
    assert not append_metrics(tmp_path / "metrics.jsonl", {"step": 2})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_incomplete_lines_and_other_json_are_ignored_and_cut_away(tmp_path: Path) -> None:
    path, good = tmp_path / "metrics.jsonl", '{"step": 1}\n{"step": 2}\n'
    for bad in ('{"step": 3, "lo', "\xff\xfe", "[3", "\0\0\0", "3\n", '"text"\n', "[1, 2]\n", "null\n"):
        path.write_text(good + bad, encoding="latin-1")
        assert read_metrics(path) == [{"step": 1}, {"step": 2}], bad
        cut_metrics(path, 5)
        assert path.read_text() == good, bad


def test_cutting_keeps_the_steps_up_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step, kept in ((0, 0), (1, 1), (2, 2), (3, 3), (9, 3)):
        path.write_text("".join(json.dumps({"step": number, "loss": 0.1}) + "\n" for number in (1, 2, 3)))
        cut_metrics(path, step)
        assert [line["step"] for line in read_metrics(path)] == [1, 2, 3][:kept]


def test_the_newest_run_is_the_one_that_saved_last(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run in .*; train one first, for example `quill train"):
        newest_run(tmp_path / "runs")
    for age, name in enumerate(["never-saved", "being-saved", "newest", "older"]):
        step = {"never-saved": "", "being-saved": ".tmp-step-000001"}.get(name, "step-000001")
        (tmp_path / name / "checkpoints" / step).mkdir(parents=True)
        if step:
            (tmp_path / name / "checkpoints" / step / "manifest.json").touch()
        os.utime(tmp_path / name / "checkpoints", (10**9 - age, 10**9 - age))
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file").touch()
    assert newest_run(tmp_path) == tmp_path / "newest"
