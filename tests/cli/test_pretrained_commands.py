"""Models made elsewhere, as they are named on the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from quillgpt.checkpoint import load_model
from quillgpt.cli import main as command_line
from quillgpt.cli.demo import NEXT
from quillgpt.errors import DataError
from quillgpt.sample.generate import generate
from quillgpt.tokenizer import load_tokenizer

SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 257}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Hugging Face directory and a nanoGPT checkpoint whose tokens are bytes."""
    torch.manual_seed(5)
    theirs = GPT2LMHeadModel(GPT2Config(**SHAPE, n_positions=48, bos_token_id=256, eos_token_id=256))
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "nano").mkdir()
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = {name: x.T if name.endswith(linear) else x for name, x in theirs.state_dict().items()}
    arguments = {**SHAPE, "block_size": 48, "bias": True, "dropout": 0.0}
    torch.save({"model": weights, "model_args": arguments}, tmp_path / "nano" / "ckpt.pt")
    for folder in ("theirs", "nano"):
        (tmp_path / folder / "tokenizer.json").write_text(load_tokenizer("byte").to_json())
    monkeypatch.chdir(tmp_path)
    return tmp_path


GREEDY = ["--temperature", "0", "-m", "6", "-p", "ab", "--device", "cpu"]
WAYS: dict[str, Callable[[str], list[str]]] = {
    "as RUN": lambda where: [where],
    "as nanoGPT's --out_dir": lambda where: [f"--out_dir={where}", "--init_from=resume"],
    "as nanoGPT's --init_from": lambda where: [f"--init_from={where}"],
}


@pytest.mark.parametrize("where", ["theirs", "./theirs", "nano", "nano/ckpt.pt"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_sample_writes_with_another_projects_model(
    where: str, way: Callable[[str], list[str]], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.run(["sample", *way(where), *GREEDY]) == 0
    expected = generate(*load_model(where), "ab", temperature=0, max_new_tokens=6)[0]
    assert capsys.readouterr().out == f"ab{expected}\n"


def test_sample_says_on_one_line_that_a_tokenizer_is_missing(here: Path) -> None:
    (here / "theirs" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"put its tokenizer\.json beside the weights"):
        command_line.run(["sample", "theirs", *GREEDY])


def test_the_dry_run_of_a_published_model_needs_nothing_from_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line.run(["train", "shakespeare", "--init_from=gpt2-xl", "--batch-size", "1", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "1,556,382,400" in shown  # of gpt2-xl, less the positions from the recipe's 256 on
    assert "init gpt2-xl" in shown


def test_the_demo_names_a_command_that_exists() -> None:
    assert 'quill sample gpt2 -p "Once upon a time"' in NEXT
    assert "cannot be loaded" not in NEXT
