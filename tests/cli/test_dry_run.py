"""--dry-run: every setting with value, origin and meaning, what follows from them, and nothing written."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quillgpt.cli import demo, train
from quillgpt.config import RunConfig, flatten, meanings, updated
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.model.sizes import PUBLISHED_PARAMETERS
from quillgpt.recipes import recipe_names
from quillgpt.train.loop import train as run

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
    """What follows from the settings: the lines below the last heading, by the name they begin with."""

    def shown(line: str) -> dict[str, str]:
        text = lines(line)
        return by_name(text[text.index("what follows") :])

    return shown


def by_name(lines: list[str]) -> dict[str, str]:
    """Lines by the name in their first column."""
    return {line[:29].strip(): line[29:] for line in lines}


def test_every_setting_is_shown_with_its_value_origin_and_meaning(lines: Callable[[str], list[str]]) -> None:
    text = lines("debug --block_size=32 --lr 1")
    shown = by_name(text[: text.index("what follows")])
    for name in flatten(RunConfig()):
        assert shown[name].endswith(meanings()[name]), name
    assert shown["context_length"].split()[:3] == ["32", "flag", "--block_size"]
    assert shown["lr"].split()[:3] == ["1", "flag", "--lr"]
    assert shown["n_layer"].split()[:3] == ["2", "recipe", "debug"]
    assert shown["dropout"].split()[:2] == ["0", "default"]
    assert shown["out"].split()[:3] == ["runs/debug", "recipe's", "name"]


def test_the_columns_stand_below_each_other_over_all_groups(lines: Callable[[str], list[str]]) -> None:
    rows = [[match.start() for match in re.finditer(r"(?<!\S)\S+(?: \S+)*", line)] for line in lines("debug --lr 1")]
    settings = [tuple(starts) for starts in rows if len(starts) == 4]
    consequences = [tuple(starts) for starts in rows if len(starts) == 3]
    assert len(set(settings)) == 1
    assert len(settings) == len(meanings())
    assert set(consequences) == {(0, settings[0][1], settings[0][3])}


def test_in_a_pipe_the_lines_are_160_columns_and_a_value_stays_whole(
    lines: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    shown = lines("debug")
    assert 140 <= max(map(len, shown)) <= 160
    assert len(shown) < len(flatten(RunConfig())) + 35  # a line each, titles, and what follows from them


def test_a_growing_batch_is_told_with_its_steps_and_all_its_tokens(show: Show) -> None:
    shown = show("debug --batch-ramp 0.25@0,0.5@0.3,1@0.6 --steps 100")
    assert shown["batch ramp"].startswith("4 to 8 to 16 sequences")
    assert "from steps 0, 30, 60 on" in shown["batch ramp"]
    assert shown["tokens"].startswith(f"{(30 * 4 + 30 * 8 + 40 * 16) * 64:,} ")
    assert "16 sequences of 64" in shown["global batch"]
    measured = show("debug --batch-ramp 0.25@0,1@0.5 --minutes 3")
    assert measured["batch ramp"].startswith("4 to 16 sequences")
    assert measured["tokens"].startswith("measured first")
    assert "batch ramp" not in show("debug")


def test_what_follows_is_arithmetic_on_the_settings(show: Show) -> None:
    shown = show(
        "debug --block_size=32 --batch_size=6 --gradient_accumulation_steps=5 --steps 7 --device cpu --threads 1"
    )
    assert shown["vocabulary"].split()[:2] == ["257", "tokens"]
    # 2 layers of 12 C^2 + 13 C, the last norm's 2 C, 257 tokens and 32 positions of C = 64
    parameters = 2 * (12 * 64**2 + 13 * 64) + 2 * 64 + (257 + 32) * 64
    assert shown["parameters"].startswith(f"{parameters:,} ")
    assert shown["tokens"].startswith(f"{7 * 6 * 5 * 32:,} ")
    assert shown["global batch"].startswith(f"{6 * 5 * 32} tokens")
    assert "30 sequences of 32" in shown["global batch"]
    assert shown["micro-batch"].startswith("6 sequences")
    assert shown["accumulation"].startswith("5 a step")
    assert re.match(r"0\.\d\d GB a rank", shown["memory"])
    assert (shown["device"].split()[0], shown["threads"].split()[0], shown["compile"].split()[0]) == ("cpu", "1", "off")
    assert shown["epochs"].startswith("unknown")


def test_gpt2_has_gpt2s_parameters(show: Show) -> None:
    assert show("gpt2-124m --bias")["parameters"].startswith(f"{PUBLISHED_PARAMETERS['gpt2']:,} ")


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if "1558m" not in name and "774m" not in name])
def test_every_recipe_can_be_shown(recipe: str, show: Show) -> None:
    assert show(f"{recipe} --device cpu")["parameters"]


def test_with_lora_it_shows_how_much_is_trained(
    show: Show, small_run: RunConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = updated(small_run, {"out": str(tmp_path_factory.mktemp("base") / "run"), "steps": 1}, where="test")
    run(base)
    line = f"debug --init {base.train.out} --data {base.data.data} --device cpu --dtype fp32 --n-embd 32"
    whole, adapters = show(line), show(f"{line} --lora-rank 4")
    assert "trained" not in whole
    # 4 * (in + out), for 2 layers of 32 to 96, 32 to 32, 32 to 128 and 128 to 32
    assert adapters["trained"].startswith(f"{2 * 4 * (128 + 64 + 160 + 160):,} ")
    assert adapters["parameters"].split()[0] == whole["parameters"].split()[0]


def test_minutes_leave_the_steps_open(show: Show) -> None:
    shown = show("python --minutes 3")
    assert "as many steps as fit into 3 minutes" in shown["tokens"]


def test_prepared_data_gives_epochs_and_vocabulary(show: Show, prepared: Path) -> None:
    shown = show(f"debug --data {prepared} --steps 100")
    count = TokenDataset.open(prepared, "train").token_count
    assert shown["training data"].startswith(f"{count:,} tokens")
    assert float(shown["epochs"].split()[0]) == pytest.approx(100 * 16 * 64 / count, abs=0.005)
    assert "of the prepared data" in shown["vocabulary"]


def test_data_that_is_missing_or_damaged_is_said(show: Show, prepared: Path, tmp_path_factory) -> None:
    assert show("debug")["training data"].startswith("not prepared yet")
    assert show("debug --data nowhere")["training data"].startswith("missing")
    broken = tmp_path_factory.mktemp("broken")
    (broken / "manifest.json").write_text((prepared / "manifest.json").read_text()[:-5])
    assert show(f"debug --data {broken}")["training data"].startswith("damaged")


def test_a_value_is_shown_whole_whatever_its_length(lines: Callable[[str], list[str]]) -> None:
    long_path = "/".join(["folder"] * 30)
    shown = lines(f"debug --path {long_path}")
    assert long_path in re.sub(r"\s", "", "".join(line[29:69] for line in shown))


@pytest.mark.parametrize(
    ("line", "error", "expected"),
    [
        ("debug --init nowhere", CheckpointError, "nowhere: no such run or checkpoint"),
        ("debug --device tpu", ConfigError, "device = 'tpu' does not exist"),
        ("debug --attention sofmax", ConfigError, "attention = 'sofmax' does not exist (did you mean softmax?)"),
        ("debug --attention gausian", ConfigError, "attention = 'gausian' does not exist (did you mean gaussian?)"),
        (
            "debug --attn_type GKpoly-3",
            ConfigError,
            "attention = 'gaussian-poly-3' is not possible: expected gaussian-",
        ),
        ("debug --attn_type PA_rellu", ConfigError, "does not exist (did you mean pointwise-relu?)"),
        ("debug --tokenizer byt", ConfigError, "no tokenizer 'byt' (did you mean byte?)"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_shown(
    line: str, error: type[Exception], expected: str, lines: Callable, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(error, match=re.escape(expected)):
        lines(line)
    assert not capsys.readouterr().out


def test_the_demo_can_be_shown_too(lines: Callable, capsys: pytest.CaptureFixture) -> None:
    assert demo.main(["--dry-run"]) == 0
    assert re.search(r"out +runs/demo ", capsys.readouterr().out)


def test_the_largest_possible_model_is_shown_in_seconds_without_its_memory(show: Show) -> None:
    started = time.perf_counter()
    shown = show("debug --n-layer 100 --n-embd 65536 --n-head 1 --batch-size 1 --device cpu")
    assert int(shown["parameters"].split()[0].replace(",", "")) > 5e12
    assert time.perf_counter() - started < 20
