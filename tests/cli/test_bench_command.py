"""`quill bench`: tables, strict JSON, one line for each misuse, and nothing left behind."""

import json
import os
import re
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quillgpt.cli.bench import ACTIONS, Contender, against, model_of, parse_command, split_flags, trace_files
from quillgpt.cli.main import explained, run
from quillgpt.config import RunConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import CheckError, ConfigError, DataError, DiskError, QuillError
from quillgpt.run_dir import config_toml
from quillgpt.sample.optimize import CompiledGPT
from quillgpt.sample.weights.int4 import Int4Linear
from quillgpt.sample.weights.int8 import Int8Linear
from quillgpt.sample.weights.plain import BF16Linear
from quillgpt.training import loop
from quillgpt.training.loop import train

SHORT = ["--windows", "2", "--seconds", "0.02", "--warmup", "0"]


@pytest.fixture
def recipe(small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe of a tiny model, in an empty directory of its own; temporary files go to another."""
    monkeypatch.setattr("quillgpt.lab.bench.measure.SQUARES", {"cpu": (64,)})
    monkeypatch.setattr("quillgpt.lab.bench.measure.PEAK_SECONDS", 0.01)
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    (tmp_path / "small.toml").write_text(config_toml(small_run))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("COLUMNS", "160")
    return "../small.toml"


@pytest.fixture
def bench(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs `quill bench` and returns what it printed; checks that it leaves nothing behind."""

    def called(*words: str) -> str:
        try:
            assert run(["bench", *words]) == 0
        finally:
            assert not list((tmp_path / "temporary").glob("quill-*"))
            assert {path.name for path in (tmp_path / "here").iterdir()} <= {"reports"}
        return capsys.readouterr().out

    return called


def strict(text: str) -> dict[str, Any]:
    """JSON without NaN and infinity, which `json` accepts by default."""

    def refused(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refused)


def figures(text: str) -> dict[str, str]:
    """A table's rows by their first column."""
    rows = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in text.splitlines()]
    return {row[0]: row[-1] for row in rows}


def test_training_is_shown_as_a_table(bench: Callable[..., str], recipe: str) -> None:
    text = bench("train", recipe, *SHORT, "--profile")
    rows = figures(text)
    for name in ("tokens/s", "step", "data", "forward", "backward", "optimizer", "logging", "MFU, measured peak"):
        assert any(digit.isdigit() for digit in rows[name]), name
    assert rows["MFU, datasheet"].split() == ["n/a"]
    assert rows["compile"].split() == ["off"]
    assert "× the first" not in text  # there is one side
    assert "6 N + 12 L C T" in text
    assert "heaviest operators of" in text
    assert "trace: reports/trace-train-..-small.toml.json; open it in https://ui.perfetto.dev" in text
    assert Path("reports/trace-train-..-small.toml.json").is_file()
    text = bench("train", recipe, recipe, *SHORT, "--against", "dtype=bf16")
    assert "dtype=bf16" in text
    (ratio,) = [line for line in text.splitlines() if "× the first" in line]
    assert ratio.split()[3] == "1"


def test_training_as_json_has_every_value(bench: Callable[..., str], recipe: str) -> None:
    found = strict(bench("train", recipe, *SHORT, "--json", "--profile", "--against", "n_layer=1"))
    assert {"benchmark", "machine", "sides", "ratios", "formula"} <= found.keys()
    assert {"processor", "cores", "cards", "torch", "quillgpt", "code"} <= found["machine"].keys()
    first, other = found["sides"]
    assert (first["name"], other["name"]) == (recipe, "n_layer=1")
    assert first["parameters"] > other["parameters"]
    assert len(first["tokens_per_second"]["values"]) == len(first["windows"]) == 2
    assert first["tokens_per_second"].keys() == {"median", "first_quartile", "third_quartile", "values"}
    values = [side["tokens_per_second"]["values"] for side in (first, other)]
    pairs = [b / a for a, b in zip(*values, strict=True)]
    assert found["ratios"]["tokens_per_second"][0]["values"] == pytest.approx(pairs)
    achieved = first["tokens_per_second"]["median"] * first["flops_per_token"]
    assert first["mfu_measured"] == pytest.approx(achieved / first["peak"]["measured_flops"])
    assert (first["mfu_datasheet"], first["compile_seconds"]) == (None, None)
    assert len(first["profile"]["operators"]) == 10
    assert Path(first["profile"]["trace"]).is_file()
    assert first["profile"]["trace"] != other["profile"]["trace"]


def test_data_is_measured_of_recipes_and_of_random_tokens(
    bench: Callable[..., str], recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = figures(bench("data", recipe, *SHORT))
    assert rows["batch, tokens"].startswith("256 ")
    assert rows["tokenizer"].split() == ["byte"]
    found = strict(bench("data", recipe, *SHORT, "--json", "--against", "batch_size=2"))
    assert [side["rows"] for side in found["sides"]] == [8, 4]
    assert found["sides"][0]["encode_bytes_per_second"]["median"] > 0
    monkeypatch.setattr("quillgpt.lab.bench.loading.RANDOM_TOKENS", 60_000)
    small = ["--n-layer", "1", "--n-head", "1", "--n-embd", "8", "--context-length", "8"]
    small += ["--batch-tokens", "16", "--batch-size", "2", "--threads", "1"]
    with pytest.raises(DataError, match="--random-tokens measures without it"):
        bench("train", "gpt2-124m", *small)
    found = strict(bench("train", "gpt2-124m", *small, *SHORT, "--random-tokens", "--json"))
    assert found["sides"][0]["parameters"] > 50257 * 8
    (random,) = strict(bench("data", "gpt2-124m", *small, *SHORT, "--random-tokens", "--json"))["sides"]
    assert random["encode_bytes_per_second"] is None
    assert "random tokens have no text" in bench("data", "gpt2-124m", *small, *SHORT, "--random-tokens")


def test_sampling_is_measured_of_recipes_and_of_models(
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
    reads = first["decode_tokens_per_second"]["median"] / 2 * first["weight_bytes"]
    assert first["weight_bytes_per_second"] == pytest.approx(reads)
    with pytest.raises(ConfigError, match=r"--n-layer: .* is a model; valid are --device"):
        bench("sample", trained, *words, "--n-layer", "3")


def test_a_sampled_model_has_the_form_that_quill_sample_gives_it(recipe: str) -> None:
    words = [recipe, "--against", "dtype=bf16", "--against", "quantize=int8", "--against", "compile=on"]
    command = parse_command("sample", [*words, "--against", "quantize=int4 dtype=bf16"])
    plain, bf16, int8, compiled, int4 = (model_of(command, side) for side in command.sides)
    layers = [type(side.model.blocks[0].mlp.expand) for side in (plain, bf16, int8, int4)]
    assert layers == [torch.nn.Linear, BF16Linear, Int8Linear, Int4Linear]
    assert type(compiled.model) is CompiledGPT
    assert [(side.dtype, side.quantize) for side in (int8, int4)] == [("fp32", "int8"), ("bf16", "int4")]
    for_all = parse_command("sample", [recipe, "--quantize", "int8", "--against", "quantize=none"])
    assert [model_of(for_all, side).quantize for side in for_all.sides] == ["int8", "none"]


def test_traces_of_the_same_recipe_go_to_separate_files(recipe: str) -> None:
    traces = trace_files(parse_command("train", ["debug", "debug", "--profile"]))
    assert [trace.name for trace in traces] == ["trace-train-debug.json", "trace-train-debug-2.json"]


def test_the_time_to_a_loss_is_shown_and_a_missed_loss_is_exit_code_76(
    bench: Callable[..., str], recipe: str, capsys: pytest.CaptureFixture
) -> None:
    words = ["time-to-loss", recipe, "--loss", "5.3", "--eval-every", "2", "--seeds", "2"]
    rows = figures(bench(*words))
    assert re.search(r"\d s", rows["training + compile"])
    found = strict(bench(*words, "--json", "--against", "lr=1e-3"))
    assert [len(side["runs"]) for side in found["sides"]] == [2, 2]
    assert all(side["reached"] for side in found["sides"])
    assert found["ratios"]["seconds"][0]["median"] > 0
    for more in ([], ["--json"]):
        with pytest.raises(CheckError, match=r"1 of 1 runs ended above a validation loss of 0.01 \(the nearest at 5"):
            run(["bench", "time-to-loss", recipe, "--loss", "0.01", "--steps", "2", *more])
    assert '"reached": false' in capsys.readouterr().out
    assert CheckError.exit_code == 76


MISUSES: list[tuple[str, type[QuillError], str]] = [
    ("trian RECIPE", ConfigError, r"no benchmark 'trian' \(did you mean train\?\)"),
    ("train", ConfigError, "which recipe"),
    ("train nosuch", ConfigError, "no recipe 'nosuch'"),
    ("train RECIPE --windows 0", ConfigError, "windows"),
    ("train RECIPE --window 3", ConfigError, r"no flag --window \(did you mean --windows\?\)"),
    ("train RECIPE --seconds nan", ConfigError, "seconds"),
    ("train RECIPE --against nosuch", ConfigError, "--against 'nosuch': no recipe 'nosuch'"),
    ("train RECIPE --against no_such=1", ConfigError, "--against 'no_such=1': no flag --no_such"),
    ("train RECIPE --against dtype=fp99", ConfigError, "--against 'dtype=fp99': .*dtype"),
    ("train RECIPE --data nowhere", ConfigError, "nowhere: no prepared data there"),
    ("train RECIPE --out x", ConfigError, "leaves no run behind"),
    ("train RECIPE --dry-run", ConfigError, "--dry-run"),
    ("train RECIPE --trace x.json", ConfigError, "with --profile only"),
    ("train RECIPE --profile --trace ..", ConfigError, "trace.*a file"),
    ("train RECIPE --profile --trace /proc/x/y.json", DiskError, "--trace"),
    ("sample nosuch", QuillError, "nosuch: no such run .* there is no recipe"),
    ("sample RECIPE --lr 3", ConfigError, "--lr: nothing is trained; valid are the shape of the model and --device"),
    ("sample RECIPE --batch-size 3", ConfigError, "--batch-size: nothing is trained"),
    ("sample RECIPE --random-tokens", ConfigError, "no flag --random-tokens"),
    ("sample RECIPE --quantize int3", ConfigError, "quantize.*int3"),
    ("sample RECIPE --quantize int8 --compile", ConfigError, "compile.*int8"),
    ("sample RECIPE --new-tokens 1", ConfigError, "new_tokens"),
    ("data RECIPE --profile", ConfigError, "no flag --profile"),
    ("time-to-loss RECIPE", ConfigError, "invalid loss: 0.*set it with --loss"),
    ("time-to-loss RECIPE --loss nan", ConfigError, "loss.*nan"),
    ("time-to-loss RECIPE --loss -1", ConfigError, "loss.*-1"),
    ("time-to-loss RECIPE --loss 3 --text nosuch.txt", DataError, "nosuch.txt: no such file"),
]


def test_a_misuse_is_one_line(bench: Callable[..., str], recipe: str) -> None:
    wrong = []
    for line, kind, message in MISUSES:
        try:
            bench(*(recipe if word == "RECIPE" else word for word in line.split()))
            wrong.append(f"{line}: no error")
        except QuillError as error:
            if not isinstance(error, kind) or not re.search(message, str(error)) or "\n" in str(error):
                wrong.append(f"{line}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def test_several_ranks_are_refused(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quillgpt.distributed.ranks_from_environment", lambda: Ranks(rank=0, world_size=2))
    with pytest.raises(ConfigError, match="leave out torchrun"):
        run(["bench", "train", recipe])


def test_the_help_of_each_action_has_its_own_flags(capsys: pytest.CaptureFixture) -> None:
    for action in ACTIONS:
        with pytest.raises(SystemExit) as stop:
            run(["bench", action, "--help"])
        assert not stop.value.code
        text = capsys.readouterr().out
        assert "--against" in text
        assert "--n-embd" not in text
        for flag, actions in {
            "--loss": ["time-to-loss"],
            "--samples": ["sample"],
            "--trace": ["train", "sample"],
        }.items():
            assert (flag in text) == (action in actions), (action, flag)


def test_options_and_settings_are_separated() -> None:
    types = {"windows": int, "json": bool, "against": tuple}
    words = ["--n-layer", "2", "--windows", "3", "--json", "--compile", "--against", "a=b"]
    words += ["--no-json", "--windows=4", "--json", "false"]
    own, others = split_flags(words, types)
    assert own == ["--windows", "3", "--json", "--against", "a=b", "--no-json", "--windows=4", "--json", "false"]
    assert others == ["--n-layer", "2", "--compile"]


def test_against_names_a_recipe_or_settings() -> None:
    cases = [
        ("dtype=fp32", "base", ["--a", "--dtype=fp32"]),
        ("--n-layer=2 lr=1", "base", ["--a", "--n-layer=2", "--lr=1"]),
        ("other", "other", ["--a"]),
        ("other 'path=a b'", "other", ["--a", "--path=a b"]),
    ]
    for text, source, flags in cases:
        found = against(text, Contender(name="base", source="base", flags=["--a"]))
        assert found == Contender(name=text, source=source, flags=flags)
    for text, message in [("", "needs a recipe"), ("other lr", "'lr' has no value"), ("'", "No closing quotation")]:
        with pytest.raises(ConfigError, match=message):
            against(text, Contender(name="base", source="base", flags=[]))


def test_a_signal_leaves_nothing_behind(
    bench: Callable[..., str], recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.one_step
    for number, code, message in [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 75, "stopped; nothing is kept"),
    ]:
        former = signal.signal(signal.SIGINT, signal.default_int_handler)  # `nohup` and `&` ignore it
        steps: list[int] = []

        def one_step(*words: object, number: int = number, steps: list[int] = steps, **named: object) -> object:
            steps.append(1)
            if len(steps) == 3:
                os.kill(os.getpid(), number)
            return real(*words, **named)

        monkeypatch.setattr("quillgpt.lab.bench.training.one_step", one_step)
        try:
            with pytest.raises((KeyboardInterrupt, QuillError)) as ended:
                bench("train", recipe, "--seconds", "60")
        finally:
            signal.signal(signal.SIGINT, former)
        assert explained(ended.value) == (code, message)
