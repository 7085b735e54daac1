"""`quill bench` as it is called: tables, strict JSON, one line for each misuse, and nothing left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quillgpt.cli.bench import trace_files
from quillgpt.cli.bench_options import ACTIONS, Side, against, split_flags, taken_apart
from quillgpt.cli.bench_sides import sampled
from quillgpt.cli.main import run
from quillgpt.config import RunConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import CheckError, ConfigError, DataError, DiskError, QuillError
from quillgpt.run_dir import config_toml
from quillgpt.sample.compiled import CompiledGPT
from quillgpt.sample.weights.int4 import Int4Linear
from quillgpt.sample.weights.int8 import Int8Linear
from quillgpt.sample.weights.plain import BrainLinear
from quillgpt.train.loop import train

SHORT = ["--windows", "2", "--seconds", "0.02", "--warmup", "0"]


@pytest.fixture
def recipe(small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe of a tiny model, in an empty directory of its own; temporary files go to another."""
    monkeypatch.setattr("quillgpt.bench.machine.SQUARES", {"cpu": (64,)})
    monkeypatch.setattr("quillgpt.bench.machine.PEAK_SECONDS", 0.01)
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    (tmp_path / "small.toml").write_text(config_toml(small_run))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("COLUMNS", "160")
    return "../small.toml"


@pytest.fixture
def bench(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs `quill bench` and returns what it printed; it leaves nothing behind."""

    def called(*words: str) -> str:
        try:
            assert run(["bench", *words]) == 0
        finally:
            assert not list((tmp_path / "temporary").glob("quill-*"))
            assert {path.name for path in (tmp_path / "here").iterdir()} <= {"reports"}
        return capsys.readouterr().out

    return called


def strict(text: str) -> dict[str, Any]:
    """JSON without NaN and infinity, which `json` reads by itself."""

    def refused(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refused)


def figures(text: str) -> dict[str, str]:
    """A table's rows by their first column."""
    rows = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in text.splitlines()]
    return {row[0]: row[-1] for row in rows}


def test_training_is_told_as_a_table(bench: Callable[..., str], recipe: str) -> None:
    text = bench("train", recipe, *SHORT, "--profile")
    rows = figures(text)
    for name in ("tokens/s", "step", "data", "forward", "backward", "optimizer", "logging", "MFU, measured peak"):
        assert any(digit.isdigit() for digit in rows[name]), name
    assert rows["MFU, datasheet"].split() == ["n/a"]
    assert rows["compile"].split() == ["off"]
    assert "6 N + 12 L C T" in text
    assert "heaviest operators of" in text
    assert "trace: reports/trace-train-..-small.toml.json; open it in https://ui.perfetto.dev" in text
    assert Path("reports/trace-train-..-small.toml.json").is_file()


def test_training_as_json_has_every_value(bench: Callable[..., str], recipe: str) -> None:
    found = strict(bench("train", recipe, *SHORT, "--json", "--profile", "--against", "n_layer=1"))
    first, other = found["sides"]
    assert (first["name"], other["name"]) == (recipe, "n_layer=1")
    assert first["parameters"] > other["parameters"]
    assert len(first["tokens_per_second"]["values"]) == len(first["windows"]) == 2
    values = [side["tokens_per_second"]["values"] for side in (first, other)]
    pairs = [b / a for a, b in zip(*values, strict=True)]
    assert found["ratios"]["tokens_per_second"][0]["values"] == pytest.approx(pairs)
    achieved = first["tokens_per_second"]["median"] * first["flops_per_token"]
    assert first["mfu_measured"] == pytest.approx(achieved / first["peak"]["measured_flops"])
    assert (first["mfu_datasheet"], first["compile_seconds"]) == (None, None)
    assert len(first["profile"]["operators"]) == 10
    assert Path(first["profile"]["trace"]).is_file()
    assert first["profile"]["trace"] != other["profile"]["trace"]


def test_several_recipes_are_held_against_the_first(bench: Callable[..., str], recipe: str) -> None:
    text = bench("train", recipe, recipe, *SHORT, "--against", "dtype=bf16")
    assert "dtype=bf16" in text
    (ratio,) = [line for line in text.splitlines() if "× the first" in line]
    assert ratio.split()[3] == "1"


def test_data_is_told(bench: Callable[..., str], recipe: str) -> None:
    rows = figures(bench("data", recipe, *SHORT))
    assert rows["batch, tokens"].startswith("256 ")
    assert rows["tokenizer"].split() == ["byte"]
    found = strict(bench("data", recipe, *SHORT, "--json", "--against", "batch_size=2"))
    assert [side["rows"] for side in found["sides"]] == [8, 4]
    assert found["sides"][0]["encode_bytes_per_second"]["median"] > 0


def test_data_that_is_not_there_may_be_drawn(
    bench: Callable[..., str], monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setattr("quillgpt.bench.random_tokens.TOKENS", 60_000)
    small = ["--n-layer", "1", "--n-head", "1", "--n-embd", "8", "--context-length", "8"]
    small += ["--batch-tokens", "16", "--batch-size", "2", "--threads", "1"]
    with pytest.raises(DataError, match="--random-tokens measures without it"):
        bench("train", "gpt2-124m", *small)
    found = strict(bench("train", "gpt2-124m", *small, *SHORT, "--random-tokens", "--json"))
    assert found["sides"][0]["parameters"] > 50257 * 8
    (drawn,) = strict(bench("data", "gpt2-124m", *small, *SHORT, "--random-tokens", "--json"))["sides"]
    assert drawn["encode_bytes_per_second"] is None
    assert "stand for no text" in bench("data", "gpt2-124m", *small, *SHORT, "--random-tokens")


def test_sampling_is_told_of_recipes_and_of_models(
    bench: Callable[..., str], recipe: str, small_run: RunConfig
) -> None:
    words = ["--new-tokens", "3", "--prompt-tokens", "5", "--threads", "1", *SHORT]
    rows = figures(bench("sample", recipe, *words))
    assert {"prefill, tokens/s", "decode, tokens/s", "MFU, measured peak", "reads"} <= rows.keys()
    trained = str(train(small_run).run)
    found = strict(bench("sample", recipe, *words, "--json", "--against", f"{trained} dtype=bf16", "--samples", "2"))
    first, other = found["sides"]
    assert (first["dtype"], other["dtype"]) == ("fp32", "bf16")
    assert first["parameters"] == other["parameters"]
    assert (first["samples"], first["new_tokens"], first["prompt_tokens"]) == (2, 3, 5)
    with pytest.raises(ConfigError, match="is a model and no recipe"):
        bench("sample", trained, *words, "--n-layer", "3")


def test_what_is_sampled_has_the_form_that_quill_sample_gives_it(recipe: str) -> None:
    words = [recipe, "--against", "dtype=bf16", "--against", "quantize=int8", "--against", "compile=on"]
    command = taken_apart("sample", [*words, "--against", "quantize=int4 dtype=bf16"])
    plain, brain, int8, compiled, int4 = (sampled(command, side) for side in command.sides)
    assert [type(side.model.blocks[0].mlp.expand) for side in (plain, brain, int8, int4)] == [
        torch.nn.Linear,
        BrainLinear,
        Int8Linear,
        Int4Linear,
    ]
    assert type(compiled.model) is CompiledGPT
    assert [(side.dtype, side.quantize) for side in (int8, int4)] == [("fp32", "int8"), ("bf16", "int4")]
    for_all = taken_apart("sample", [recipe, "--quantize", "int8", "--against", "quantize=none"])
    assert [sampled(for_all, side).quantize for side in for_all.sides] == ["int8", "none"]


def test_traces_of_the_same_recipe_go_to_files_of_their_own(recipe: str) -> None:
    traces = trace_files(taken_apart("train", ["debug", "debug", "--profile"]))
    assert [trace.name for trace in traces] == ["trace-train-debug.json", "trace-train-debug-2.json"]


def test_the_time_to_a_loss_is_told(bench: Callable[..., str], recipe: str) -> None:
    words = ["time-to-loss", recipe, "--loss", "5.3", "--eval-every", "2", "--seeds", "2"]
    rows = figures(bench(*words))
    assert "2 of" not in rows["training + compile"]
    assert "s" in rows["training + compile"]
    found = strict(bench(*words, "--json", "--against", "lr=1e-3"))
    assert [len(side["runs"]) for side in found["sides"]] == [2, 2]
    assert all(side["reached"] for side in found["sides"])
    assert found["ratios"]["seconds"][0]["median"] > 0


def test_a_loss_that_is_not_reached_is_exit_code_76(recipe: str, capsys: pytest.CaptureFixture) -> None:
    for more in ([], ["--json"]):
        with pytest.raises(CheckError, match=r"1 of 1 runs ended above a held-out loss of 0.01 \(the nearest at 5"):
            run(["bench", "time-to-loss", recipe, "--loss", "0.01", "--steps", "2", *more])
    assert '"reached": false' in capsys.readouterr().out
    assert CheckError.exit_code == 76


MISUSES: list[tuple[str, type[QuillError], str]] = [
    ("trian RECIPE", ConfigError, r"no benchmark 'trian' \(did you mean train\?\)"),
    ("train", ConfigError, "which recipe"),
    ("train nosuch", ConfigError, "no recipe 'nosuch'"),
    ("train RECIPE --windows 0", ConfigError, "windows = 0 is not possible"),
    ("train RECIPE --window 3", ConfigError, r"no flag --window \(did you mean --windows\?\)"),
    ("train RECIPE --seconds nan", ConfigError, "seconds = nan is not possible"),
    ("train RECIPE --against nosuch", ConfigError, "--against 'nosuch': no recipe 'nosuch'"),
    ("train RECIPE --against no_such=1", ConfigError, "--against 'no_such=1': no flag --no_such"),
    ("train RECIPE --against dtype=fp99", ConfigError, "--against 'dtype=fp99': dtype = 'fp99'"),
    ("train RECIPE --data nowhere", ConfigError, "nowhere: no prepared data there"),
    ("train RECIPE --out x", ConfigError, "leaves no run behind"),
    ("train RECIPE --dry-run", ConfigError, "--dry-run"),
    ("train RECIPE --trace x.json", ConfigError, "only with --profile"),
    ("train RECIPE --profile --trace ..", ConfigError, "expected a file"),
    ("train RECIPE --profile --trace /proc/x/y.json", DiskError, "choose another --trace"),
    ("sample nosuch", QuillError, "nosuch: no such run .* nor is there a recipe"),
    ("sample RECIPE --lr 3", ConfigError, "--lr: nothing is trained; there are the shape of the model and --device"),
    ("sample RECIPE --batch-size 3", ConfigError, "--batch-size: nothing is trained"),
    ("sample RECIPE --quantize int3", ConfigError, "quantize = 'int3' does not exist"),
    ("sample RECIPE --quantize int8 --compile", ConfigError, "compile: the product of int8 weights"),
    ("sample RECIPE --new-tokens 1", ConfigError, "new_tokens = 1 is not possible"),
    ("data RECIPE --profile", ConfigError, "no flag --profile"),
    ("time-to-loss RECIPE", ConfigError, "loss = 0.0 is not possible: expected --loss"),
    ("time-to-loss RECIPE --loss nan", ConfigError, "loss = nan is not possible"),
    ("time-to-loss RECIPE --loss -1", ConfigError, "loss = -1.0 is not possible"),
    ("time-to-loss RECIPE --loss 3 --text nosuch.txt", DataError, "nosuch.txt: no such file"),
]


@pytest.mark.parametrize(("line", "kind", "told"), MISUSES, ids=[line for line, _, _ in MISUSES])
def test_a_misuse_is_one_line(
    line: str, kind: type[QuillError], told: str, bench: Callable[..., str], recipe: str
) -> None:
    with pytest.raises(kind, match=told):
        bench(*(recipe if word == "RECIPE" else word for word in line.split()))


def test_several_ranks_are_refused(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quillgpt.distributed.ranks_from_environment", lambda: Ranks(rank=0, world_size=2))
    with pytest.raises(ConfigError, match="leave out torchrun"):
        run(["bench", "train", recipe])


@pytest.mark.parametrize("action", ACTIONS)
def test_the_help_of_each_is_its_own(action: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        run(["bench", action, "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "--against" in text
    assert "--n-embd" not in text
    assert ("--loss" in text) == (action == "time-to-loss")


def test_options_and_settings_are_told_apart() -> None:
    types = {"windows": int, "json": bool, "against": tuple}
    words = ["--n-layer", "2", "--windows", "3", "--json", "--compile", "--against", "a=b"]
    words += ["--no-json", "--windows=4", "--json", "false"]
    own, others = split_flags(words, types)
    assert own == ["--windows", "3", "--json", "--against", "a=b", "--no-json", "--windows=4", "--json", "false"]
    assert others == ["--n-layer", "2", "--compile"]


@pytest.mark.parametrize(
    ("text", "subject", "flags"),
    [
        ("dtype=fp32", "base", ["--a", "--dtype=fp32"]),
        ("--n-layer=2 lr=1", "base", ["--a", "--n-layer=2", "--lr=1"]),
        ("other", "other", ["--a"]),
        ("other 'path=a b'", "other", ["--a", "--path=a b"]),
    ],
)
def test_against_names_a_recipe_or_settings(text: str, subject: str, flags: list[str]) -> None:
    assert against(text, Side(name="base", subject="base", flags=["--a"])) == Side(
        name=text, subject=subject, flags=flags
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_leaves_nothing_behind(number: int, code: int, recipe: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "quillgpt", "bench", "train", recipe, "--seconds", "60"]
    place = tmp_path / "temporary"
    started = time.monotonic()
    environment = {**os.environ, "TMPDIR": str(place)}
    with subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        while not list(place.glob("*/0/run/metrics.jsonl")) and time.monotonic() - started < 60:
            time.sleep(0.05)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert told.splitlines()[-1] in ("quill: interrupted", "quill: stopped; nothing is kept")
    assert not list(place.glob("quill-*"))
