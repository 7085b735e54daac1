"""The model in the package: it is small, intact, as good as its card says, and used where there is no run."""

import json
import re
from pathlib import Path

import pytest
import torch

import quillgpt
from quillgpt import checkpoint
from quillgpt.checkpoint.load import BUNDLED_MODEL, DIRECTORY
from quillgpt.cli.main import run as command
from quillgpt.errors import CheckpointError, ConfigError

NAMES = {"README.md", "config.toml", "manifest.json", "model.safetensors", "tokenizer.json"}


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_has_weights_tokenizer_recipe_and_card_in_four_megabytes_as_its_manifest_says() -> None:
    assert {path.name for path in DIRECTORY.iterdir()} == NAMES
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) <= 4_200_000
    assert (DIRECTORY / "model.safetensors").stat().st_size <= 4_000_000
    checkpoint.verify(checkpoint.read_checkpoint(DIRECTORY))


def test_it_was_made_by_the_recipe_of_its_name() -> None:
    made, recipe = quillgpt.load_recipe(str(DIRECTORY / "config.toml")), quillgpt.load_recipe(BUNDLED_MODEL)
    assert (made.model, made.optim) == (recipe.model, recipe.optim)
    assert checkpoint.read_checkpoint(DIRECTORY).manifest.model.vocab_size == recipe.model.vocab_size


def test_it_predicts_unseen_python_about_as_well_as_its_card_says_and_writes_python() -> None:
    """The card's figure is of the standard library, so this file's loss is only close to it."""
    model, tokenizer = quillgpt.load_model(BUNDLED_MODEL)
    tokens = torch.tensor([tokenizer.encode(Path(__file__).read_text())[: model.config.context_length + 1]])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1])[0], tokens[0, 1:]).item()
    figure = re.search(r"([\d.]+) nats per token", (DIRECTORY / "README.md").read_text())
    assert figure is not None
    assert float(figure[1]) < 2.6
    assert abs(loss - float(figure[1])) < 1.2
    (text,) = quillgpt.generate(model, tokenizer, "def main(", max_new_tokens=40, temperature=0)
    assert "):" in text


def test_commands_use_it_without_a_run_or_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["sample", "-p", "import", "-m", "8"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("import")
    assert "no run in runs/ yet: using quill-python" in captured.err
    assert not list(tmp_path.iterdir())
    Path("text.py").write_text("def add(a, b):\n    return a + b\n" * 20)
    assert command(["eval", BUNDLED_MODEL, "--data", "text.py", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert 0 < result["scores"]["loss"] < 3


def test_an_ambiguous_or_misspelt_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / BUNDLED_MODEL).mkdir()
    with pytest.raises(ConfigError, match=r"also something in this directory; write \./quill-python"):
        quillgpt.load_model(BUNDLED_MODEL)
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        quillgpt.load_model(f"./{BUNDLED_MODEL}")
    with pytest.raises(CheckpointError, match="did you mean quill-python"):
        quillgpt.load_model("quil-python")
