"""A tiny random model and what it generates, for the tests of this folder."""

from collections.abc import Sequence

import torch

from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT
from quillgpt.sample.engine import Generator, RecomputingGenerator, generate_tokens
from quillgpt.sample.settings import SamplingSettings

PROMPT = [3, 1, 4, 1, 5]


def tiny_gpt(scale: float = 6.0, **changes: object) -> GPT:
    """A random model; the scale of its matrices keeps greedy text from settling on one token."""
    shape: dict = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32, "vocab_size": 50}
    torch.manual_seed(0)
    model = GPT(ModelConfig(**(shape | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return model


def new_tokens(
    generator: Generator | RecomputingGenerator, settings: SamplingSettings, samples: Sequence[int] = (0,)
) -> list[list[int]]:
    """All new tokens after PROMPT, a list for each sample."""
    return torch.stack(list(generate_tokens(generator, PROMPT, settings, samples)), dim=1).tolist()


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(2))
