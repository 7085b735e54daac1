"""Every attention of the menu trains, resumes, evaluates and samples with a cache, also in the demo's recipe."""

import math
from pathlib import Path
from typing import Any

import torch

import quillgpt
from quillgpt import checkpoint
from quillgpt.config import RunConfig
from quillgpt.model.attention import ATTENTION
from quillgpt.recipes import recipe_config
from quillgpt.sample.engine import Generator, RecomputingGenerator, generate_tokens
from quillgpt.sample.settings import SamplingSettings
from quillgpt.training.loop import train
from small_runs import assert_same_run, changed, column


def test_every_attention_trains_resumes_evaluates_and_samples(small_run: RunConfig, tmp_path: Path) -> None:
    for attention in (*ATTENTION, "gaussian-poly-6"):
        settings = {"attention": attention, "schedule": "constant", "steps": 12, "eval_every": 6, "save_every": 6}
        halves = changed(small_run, **settings, out=str(tmp_path / attention))
        once = changed(halves, out=str(tmp_path / f"{attention}-once"))
        train(changed(halves, steps=6))
        outcome = train(halves)
        assert outcome.validation == train(once).validation, attention
        assert_same_run(halves, once)
        losses = column(halves, "train_loss")
        assert losses[-1] < losses[0] - 0.5, attention
        assert greedy(outcome.run, Generator) == greedy(outcome.run, RecomputingGenerator), attention


def greedy(run: Path, kind: type[Generator] | type[RecomputingGenerator]) -> list[int]:
    """The likeliest 40 tokens after a prompt, past the context of 32."""
    model, _ = checkpoint.load_model(run)
    settings = SamplingSettings(temperature=0, max_new_tokens=40)
    return [int(token) for token in generate_tokens(kind(model), [100, 111, 99], settings, [0])]


def test_the_demo_trains_with_every_attention(small_run: RunConfig, tmp_path: Path) -> None:
    """The demo's recipe in a hundredth of its size, on the tests' data."""
    small = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32, "vocab_size": 257, "batch_tokens": 128}
    data = {"data": small_run.data.data, "source": "text", "tokenizer": "byte", "eval_tokens": 500}
    machine: dict[str, Any] = {"device": "cpu", "dtype": "bf16", "threads": 1, "log_every": 1, "steps": 2}
    for attention, entry in ATTENTION.items():
        config = recipe_config("python", attention=attention, **small, **data, **machine, out=str(tmp_path / attention))
        outcome = train(config)
        assert math.isfinite(outcome.validation.loss), attention
        assert all(map(math.isfinite, column(config, "train_loss")))
        assert min(column(config, "grad_norm")) > 0
        monitored = column(config, "kernel_x_max" if entry.monitored == "distance" else "score_max")
        assert len(monitored) == (2 if entry.monitored else 0), attention
        assert quillgpt.load_model(outcome.run)[0].config.attention == attention


def test_with_qk_norm_the_normalized_gaussian_is_softmax_again() -> None:
    """So the recipe gaussian-normalized-python has none, and neither has the comparison of the menu."""
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
    with_norm, without = (
        (logits["softmax", qk_norm] - logits["gaussian-normalized", qk_norm]).abs().max().item()
        for qk_norm in (True, False)
    )
    assert with_norm < 1e-5 < 1e-3 < without
