"""The model that comes with the package: it is small, intact, as good as its card says, and there without a run."""

import json
import re
from pathlib import Path

import pytest
import torch

import quillgpt
from quillgpt import checkpoint
from quillgpt.checkpoint.in_the_box import DIRECTORY, IN_THE_BOX
from quillgpt.cli.main import run as command
from quillgpt.errors import CheckpointError, ConfigError

NAMES = {"README.md", "config.toml", "manifest.json", "model.safetensors", "tokenizer.json"}


def test_it_has_its_weights_tokenizer_recipe_and_card_in_four_megabytes() -> None:
    assert {path.name for path in DIRECTORY.iterdir()} == NAMES
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) <= 4_200_000
    assert (DIRECTORY / "model.safetensors").stat().st_size <= 4_000_000


def test_its_files_are_those_of_its_manifest() -> None:
    checkpoint.verify(checkpoint.read_checkpoint(DIRECTORY))


def test_it_was_made_by_the_recipe_of_its_name() -> None:
    made = quillgpt.load_recipe(str(DIRECTORY / "config.toml"))
    recipe = quillgpt.load_recipe(IN_THE_BOX)
    assert made.model == recipe.model
    assert made.optim == recipe.optim
    assert checkpoint.read_checkpoint(DIRECTORY).manifest["model"]["vocab_size"] == recipe.model.vocab_size


def test_it_predicts_python_it_was_not_shown_as_its_card_says() -> None:
    """This file is of no standard library; the card's figure is of such, so that only nearness is asked."""
    model, tokenizer = quillgpt.load_model(IN_THE_BOX)
    text = Path(__file__).read_text()
    tokens = torch.tensor([tokenizer.encode(text)[: model.config.context_length + 1]])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1])[0], tokens[0, 1:]).item()
    told = float(re.search(r"([\d.]+) nats per token", (DIRECTORY / "README.md").read_text())[1])  # pyrefly: ignore
    assert told < 2.6
    assert abs(loss - told) < 1.2


def test_greedy_it_writes_python() -> None:
    model, tokenizer = quillgpt.load_model(IN_THE_BOX)
    prompt = "class Reader:\n    def __init__(self"
    (text,) = quillgpt.generate(model, tokenizer, prompt, max_new_tokens=16, temperature=0)
    assert "):" in text


def test_without_a_run_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(["sample", "-p", "import", "-m", "8"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("import")
    assert "no run in runs/ yet: this is quill-python" in captured.err
    assert not list(tmp_path.iterdir())


def test_it_is_evaluated_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.py").write_text("def add(a, b):\n    return a + b\n" * 20)
    assert command(["eval", IN_THE_BOX, "--data", "text.py", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert 0 < result["scores"]["loss"] < 3


def test_its_name_is_refused_where_it_may_mean_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / IN_THE_BOX).mkdir()
    with pytest.raises(ConfigError, match=r"also something in this directory; write \./quill-python"):
        quillgpt.load_model(IN_THE_BOX)
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        quillgpt.load_model(f"./{IN_THE_BOX}")


def test_a_misspelt_name_is_told_the_nearest() -> None:
    with pytest.raises(CheckpointError, match="did you mean quill-python"):
        quillgpt.load_model("quil-python")
