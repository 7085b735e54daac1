"""The demo's recipe trains with every attention of the menu, in bf16 and with its modern block."""

import math
from pathlib import Path

import pytest
import torch

import quillgpt
from quillgpt.config import RunConfig
from quillgpt.model.attention import ATTENTION
from quillgpt.recipes import load_recipe
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.train.kernel_statistics import is_watched
from quillgpt.train.loop import train


def demo_with(attention: str, small_run: RunConfig, out: Path) -> RunConfig:
    """The demo in a hundredth of its size, on the tests' data."""
    small = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32, "vocab_size": 257, "batch_tokens": 128}
    data = {"data": small_run.data.data, "source": "text", "tokenizer": "byte", "eval_tokens": 500}
    machine = {"device": "cpu", "dtype": "bf16", "threads": 1, "out": str(out), "log_every": 1}
    return load_recipe("python", attention=attention, steps=2, **small, **data, **machine)


@pytest.mark.parametrize("attention", ATTENTION)
def test_the_demo_trains_with_every_attention(attention: str, small_run: RunConfig, tmp_path: Path) -> None:
    outcome = train(demo_with(attention, small_run, tmp_path / "run"))

    assert outcome.step == 2
    assert math.isfinite(outcome.held_out.loss)
    lines = read_metrics(RunDirectory(outcome.run).metrics)
    assert all(math.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines)
    assert all(("weight_sum_max" in line or "kernel_x_max" in line) == is_watched(attention) for line in lines)
    assert quillgpt.load_model(outcome.run)[0].config.attention == attention


def test_with_qk_norm_the_normalized_gaussian_is_softmax_again() -> None:
    """So the recipe gaussian-normalized-python has none, and neither has the comparison of the whole menu."""
    tokens = torch.arange(32)[None]
    logits = {}
    for attention in ("softmax", "gaussian-normalized"):
        for qk_norm in (True, False):
            torch.manual_seed(1)
            shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32, "vocab_size": 67}
            model = quillgpt.GPT(quillgpt.ModelConfig(attention=attention, qk_norm=qk_norm, **shape)).double()
            with torch.no_grad():
                for block in model.blocks:
                    block.attention.qkv.weight.mul_(20.0)
            logits[attention, qk_norm] = model(tokens)
    distance = {
        qk_norm: (logits["softmax", qk_norm] - logits["gaussian-normalized", qk_norm]).abs().max().item()
        for qk_norm in (True, False)
    }
    assert distance[True] < 1e-5 < 1e-3 < distance[False]
