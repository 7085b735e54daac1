"""Models of `transformers` with random weights, saved in the real format; no network."""

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

logging.disable_progress_bar()

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 32, "vocab_size": 301}


def random_model(**settings: Any) -> GPT2LMHeadModel:
    """A model of theirs with weights far from 0 everywhere, norms and biases too; quick for any size."""
    config = GPT2Config(**settings, bos_token_id=0, eos_token_id=0)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    model.to_empty(device="cpu").tie_weights()
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(1)) * 0.05
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            flat, noise = parameter.view(-1), noise.roll(7919)
            for start in range(0, len(flat), len(noise)):
                flat[start : start + len(noise)] = noise[: len(flat) - start]
            if "ln_" in name and name.endswith("weight"):
                parameter += 1
    return model.eval()


def tokens(count: int = 8, vocab_size: int = 301) -> torch.Tensor:
    """(2, count) tokens of the vocabulary, its last one among them."""
    found = torch.randint(vocab_size, (2, count), generator=torch.Generator().manual_seed(2))
    found[0, 0] = vocab_size - 1
    return found


@torch.no_grad()
def difference(ours: Any, theirs: Any, inputs: torch.Tensor) -> float:
    """The largest difference of the two models' logits, in units of the largest logit."""
    expected = theirs(inputs)
    expected = getattr(expected, "logits", expected)
    got = ours(inputs)
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max()).item()
