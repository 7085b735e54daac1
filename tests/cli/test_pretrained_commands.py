"""Models of other projects on the command line."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from quillgpt.checkpoint import load_model
from quillgpt.cli import main as command_line
from quillgpt.cli.demo import NEXT
from quillgpt.errors import DataError
from quillgpt.sample.engine import generate
from quillgpt.tokenizer import load_tokenizer

SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 257}
GREEDY = ["--temperature", "0", "-m", "6", "-p", "ab", "--device", "cpu"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_models() -> None:
    """Write a Hugging Face directory and a nanoGPT checkpoint whose tokens are bytes."""
    torch.manual_seed(5)
    theirs = GPT2LMHeadModel(GPT2Config(**SHAPE, n_positions=48, bos_token_id=256, eos_token_id=256))
    theirs.save_pretrained("theirs")
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = {name: x.T if name.endswith(linear) else x for name, x in theirs.state_dict().items()}
    Path("nano").mkdir()
    torch.save({"model": weights, "model_args": {**SHAPE, "block_size": 48, "bias": True}}, "nano/ckpt.pt")
    for folder in ("theirs", "nano"):
        Path(folder, "tokenizer.json").write_text(load_tokenizer("byte").to_json())


def test_sample_accepts_models_of_other_projects(capsys: pytest.CaptureFixture[str]) -> None:
    write_models()
    for where in ("theirs", "./theirs", "nano", "nano/ckpt.pt"):
        expected = generate(*load_model(where), "ab", temperature=0, max_new_tokens=6)[0]
        for words in ([where], [f"--out_dir={where}", "--init_from=resume"], [f"--init_from={where}"]):
            assert command_line.run(["sample", *words, *GREEDY]) == 0
            assert capsys.readouterr().out == f"ab{expected}\n", words
    Path("theirs/tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"put its tokenizer\.json next to the weights"):
        command_line.run(["sample", "theirs", *GREEDY])


def test_the_dry_run_of_a_published_model_needs_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(["train", "shakespeare", "--init_from=gpt2-xl", "--batch-size", "1", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "1,556,382,400" in shown  # of gpt2-xl, without the positions after the recipe's 256
    assert "init gpt2-xl" in shown


def test_the_demo_names_a_command_that_exists() -> None:
    assert 'quill sample gpt2 -p "Once upon a time"' in NEXT
    assert "cannot be loaded" not in NEXT
