"""The table of weight names, held to `transformers` and to docs/names.md."""

import re
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT
from quillgpt.pretrained.gpt2_names import HUGGING_FACE, TRANSPOSED, from_hugging_face, to_hugging_face

PAGE = Path(__file__).parents[2] / "docs" / "names.md"


def test_every_weight_has_the_name_and_shape_transformers_gives_it() -> None:
    with torch.device("meta"):
        ours = GPT(ModelConfig(n_layer=11, n_head=2, n_embd=8, vocab_size=64, context_length=5, tied_head=False))
        config = GPT2Config(n_layer=11, n_head=2, n_embd=8, vocab_size=64, n_positions=5, tie_word_embeddings=False)
        theirs = dict(GPT2LMHeadModel(config).named_parameters())
    seen = set()
    for name, parameter in ours.named_parameters():
        their_name, is_transposed = to_hugging_face(name)
        assert theirs[their_name].shape == (parameter.T if is_transposed else parameter).shape
        assert from_hugging_face(their_name) == (name, is_transposed)
        seen.add(their_name)
    assert seen == theirs.keys()


def test_a_name_that_is_in_neither_model_is_refused() -> None:
    for name in ("blocks.0.mlp.gate.weight", "blocks.weight", "wte.weight"):
        with pytest.raises(KeyError):
            to_hugging_face(name)


def test_the_page_of_names_is_this_table() -> None:
    rows = re.findall(r"^\| `([\w.]+)`.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(HUGGING_FACE) <= set(rows)
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        name = cells[0].split("`")[1] if cells and cells[0].startswith("`") else ""
        if name not in HUGGING_FACE or len(cells) != 6 or not cells[3]:
            continue  # a row of another table, or of a weight they do not have
        assert cells[3].split("`")[1] == HUGGING_FACE[name].removeprefix("transformer."), name
        assert (cells[5] == "T") == name.endswith(tuple(TRANSPOSED)), name
