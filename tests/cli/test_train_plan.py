"""--dry-run: every setting with value, origin and meaning, and what is derived from them; nothing is written."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quillgpt.cli import demo, train
from quillgpt.config import RunConfig, flatten, meanings, updated
from quillgpt.data.dataset import TokenDataset
from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.model.sizes import PUBLISHED_PARAMETERS
from quillgpt.recipes import recipe_names
from quillgpt.training.loop import train as run

Show = Callable[[str], dict[str, str]]


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[[str], list[str]]:
    """The lines that `quill train ... --dry-run` prints in an empty directory, which stays empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def shown(line: str) -> list[str]:
        assert train.main([*line.split(), "--dry-run"]) == 0
        assert not list(tmp_path.iterdir())
        return [text.rstrip() for text in capsys.readouterr().out.splitlines()]

    return shown


@pytest.fixture
def show(lines: Callable[[str], list[str]]) -> Show:
    """The lines below the heading `derived`, by the name in their first column."""

    def shown(line: str) -> dict[str, str]:
        text = lines(line)
        return by_name(text[text.index("derived") :])

    return shown


def by_name(lines: list[str]) -> dict[str, str]:
    """Lines by the name in their first column."""
    return {line[:29].strip(): line[29:] for line in lines}


def test_every_setting_is_shown_with_its_value_origin_and_meaning_in_aligned_columns(
    lines: Callable[[str], list[str]],
) -> None:
    text = lines("debug --block_size=32 --lr 1")
    shown = by_name(text[: text.index("derived")])
    for name in flatten(RunConfig()):
        assert shown[name].endswith(meanings()[name]), name
    for name, expected in {
        "context_length": "32 flag --block_size",
        "lr": "1 flag --lr",
        "n_layer": "2 recipe debug",
        "dropout": "0 default",
        "out": "runs/debug recipe's name",
    }.items():
        assert " ".join(shown[name].split()).startswith(expected)
    rows = [[match.start() for match in re.finditer(r"(?<!\S)\S+(?: \S+)*", line)] for line in text]
    settings = [tuple(starts) for starts in rows if len(starts) == 4]
    derived = [tuple(starts) for starts in rows if len(starts) == 3]
    assert len(set(settings)) == 1
    assert len(settings) == len(meanings())
    assert set(derived) == {(0, settings[0][1], settings[0][3])}


def test_in_a_pipe_the_lines_have_160_columns_and_no_value_is_cut(
    lines: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    long_path = "/".join(["folder"] * 30)
    assert long_path in re.sub(r"\s", "", "".join(line[29:69] for line in lines(f"debug --path {long_path}")))
    monkeypatch.delenv("COLUMNS")
    shown = lines("debug")
    assert 140 <= max(map(len, shown)) <= 160
    assert len(shown) < len(flatten(RunConfig())) + 35  # a line each, titles, and what is derived


def test_a_growing_batch_is_shown_with_its_steps_and_all_its_tokens(show: Show) -> None:
    shown = show("debug --batch-ramp 0.25@0,0.5@0.3,1@0.6 --steps 100")
    assert shown["batch ramp"].startswith("4 to 8 to 16 sequences")
    assert "from steps 0, 30, 60" in shown["batch ramp"]
    assert shown["tokens"].startswith(f"{(30 * 4 + 30 * 8 + 40 * 16) * 64:,} ")
    assert "16 sequences of 64" in shown["global batch"]
    measured = show("debug --batch-ramp 0.25@0,1@0.5 --minutes 3")
    assert measured["batch ramp"].startswith("4 to 16 sequences")
    assert measured["tokens"].startswith("measured first")
    assert "the steps that fit into 3 minutes" in measured["tokens"]
    assert "batch ramp" not in show("debug")


def test_what_is_derived_is_arithmetic_on_the_settings(show: Show) -> None:
    shown = show(
        "debug --block_size=32 --batch_size=6 --gradient_accumulation_steps=5 --steps 7 --device cpu --threads 1"
    )
    # 2 layers of 12 C^2 + 13 C, the last norm's 2 C, 257 tokens and 32 positions of C = 64
    parameters = 2 * (12 * 64**2 + 13 * 64) + 2 * 64 + (257 + 32) * 64
    for name, expected in {
        "vocabulary": "257 tokens",
        "parameters": f"{parameters:,} ",
        "tokens": f"{7 * 6 * 5 * 32:,} ",
        "global batch": f"{6 * 5 * 32} tokens",
        "micro-batch": "6 sequences",
        "accumulation": "5 per step",
        "device": "cpu ",
        "threads": "1 ",
        "compile": "off ",
        "epochs": "unknown",
    }.items():
        assert shown[name].startswith(expected), name
    assert "30 sequences of 32" in shown["global batch"]
    assert re.match(r"0\.\d\d GB per rank", shown["memory"])
    assert show("gpt2-124m --bias")["parameters"].startswith(f"{PUBLISHED_PARAMETERS['gpt2']:,} ")


def test_every_recipe_can_be_shown(show: Show) -> None:
    for recipe in recipe_names():
        if "1558m" not in recipe and "774m" not in recipe:
            assert show(f"{recipe} --device cpu")["parameters"], recipe


def test_with_lora_it_shows_how_much_is_trained(
    show: Show, small_run: RunConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = updated(small_run, {"out": str(tmp_path_factory.mktemp("base") / "run"), "steps": 1}, where="test")
    run(base)
    line = f"debug --init {base.train.out} --data {base.data.data} --device cpu --dtype fp32 --n-embd 32"
    full, adapters = show(line), show(f"{line} --lora-rank 4")
    assert "trained" not in full
    # 4 * (in + out), for 2 layers of 32 to 96, 32 to 32, 32 to 128 and 128 to 32
    assert adapters["trained"].startswith(f"{2 * 4 * (128 + 64 + 160 + 160):,} ")
    assert adapters["parameters"].split()[0] == full["parameters"].split()[0]


def test_prepared_missing_and_damaged_data_are_distinguished(
    show: Show, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shown = show(f"debug --data {prepared} --steps 100")
    count = TokenDataset.open(prepared, "train").token_count
    assert shown["training data"].startswith(f"{count:,} tokens")
    assert float(shown["epochs"].split()[0]) == pytest.approx(100 * 16 * 64 / count, abs=0.005)
    assert "of the prepared data" in shown["vocabulary"]
    assert show("debug")["training data"].startswith("not prepared yet")
    assert show("debug --data nowhere")["training data"].startswith("missing")
    broken = tmp_path_factory.mktemp("broken")
    (broken / "manifest.json").write_text((prepared / "manifest.json").read_text()[:-5])
    assert show(f"debug --data {broken}")["training data"].startswith("damaged")


def test_impossible_settings_are_refused_before_anything_is_shown(
    lines: Callable[[str], list[str]], capsys: pytest.CaptureFixture
) -> None:
    for line, error, expected in (
        ("debug --init nowhere", CheckpointError, "nowhere: no such run or checkpoint"),
        ("debug --device tpu", ConfigError, "invalid device: 'tpu'"),
        ("debug --attention sofmax", ConfigError, "invalid attention: 'sofmax' (did you mean softmax?)"),
        ("debug --attn_type GKpoly-3", ConfigError, "invalid attention: 'gaussian-poly-3' (must be gaussian-"),
        ("debug --attn_type PA_rellu", ConfigError, "(did you mean pointwise-relu?)"),
        ("debug --tokenizer byt", ConfigError, "no tokenizer 'byt' (did you mean byte?)"),
    ):
        with pytest.raises(error, match=re.escape(expected)):
            lines(line)
        assert not capsys.readouterr().out
    assert demo.main(["--dry-run"]) == 0
    assert re.search(r"out +runs/demo ", capsys.readouterr().out)


def test_the_largest_possible_model_is_shown_in_seconds_without_its_memory(show: Show) -> None:
    started = time.perf_counter()
    shown = show("debug --n-layer 100 --n-embd 65536 --n-head 1 --batch-size 1 --device cpu")
    assert int(shown["parameters"].split()[0].replace(",", "")) > 5e12
    assert time.perf_counter() - started < 20
