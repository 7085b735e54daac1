"""The tiny run that `quill explain` shows: four sentences, and a model that has learned them after a second or two."""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from quillgpt.explain import gpt2
from quillgpt.explain.drawing import visible

SENTENCES = (
    "the cat sat on the mat. ",
    "the dog sat on the log. ",
    "the fox sat in the box. ",
    "the hen sat in the pen. ",
)
RECORDED = ("linear", "layer_norm", "attention_weights", "attention", "gpt")
Calls = dict[str, list[tuple[tuple[Any, ...], Tensor]]]
PROMPT = "the dog sat on the "
CONFIG = gpt2.Config(
    n_layer=2,
    n_head=2,
    n_embd=32,
    context_length=16,
    vocab_size=265,
    steps=300,
    batch_size=8,
    lr=1e-2,
    min_lr=1e-3,
    warmup_steps=10,
    top_k=5,
)


class TinyRun:
    """A text, its tokens, the weights before and after training; each is made when it is first asked for."""

    def __init__(self) -> None:
        self.text = "".join(random.Random(1).choices(SENTENCES, k=80))
        self.prompt = gpt2.encode(PROMPT, self.merges)
        self.inputs = torch.tensor([self.prompt])  # (1, T)

    @functools.cached_property
    def merges(self) -> list[str]:
        """The merges, learned from the text."""
        return gpt2.learn_merges(self.text, CONFIG.vocab_size - 256)

    @functools.cached_property
    def tokens(self) -> Tensor:
        """The text's tokens (N)."""
        return torch.tensor(gpt2.encode(self.text, self.merges))

    @functools.cached_property
    def weights(self) -> gpt2.Tensors:
        """The weights before training."""
        with seeded():
            return gpt2.initial_weights(CONFIG)

    @functools.cached_property
    def training(self) -> tuple[gpt2.Tensors, list[float]]:
        """The weights after training, and the loss of each step."""
        weights = {name: weight.detach().clone().requires_grad_() for name, weight in self.weights.items()}
        with seeded():
            return weights, list(gpt2.train(weights, self.tokens, CONFIG))

    def show(self, tokens: list[int]) -> list[str]:
        """Each token as it can be seen."""
        return [visible(gpt2.decode([token], self.merges)) for token in tokens]

    @functools.cached_property
    def calls(self) -> Calls:
        """What the functions are given and return in one forward pass over the prompt, before training."""
        return recorded_calls(lambda: gpt2.gpt(self.inputs, self.weights, CONFIG))

    @functools.cached_property
    def trained_calls(self) -> Calls:
        """The same after training."""
        return recorded_calls(lambda: gpt2.gpt(self.inputs, self.training[0], CONFIG))


@torch.no_grad()
def recorded_calls(act: Callable[[], Tensor]) -> Calls:
    """The calls of every function in `RECORDED` while something is done, by its name and in their order."""
    originals = {name: getattr(gpt2, name) for name in RECORDED}
    calls: Calls = {name: [] for name in RECORDED}

    def recording(name: str) -> Callable[..., Tensor]:
        def call(*given: Any) -> Tensor:
            result = originals[name](*given)
            calls[name].append((given, result))
            return result

        return call

    try:
        for name in RECORDED:
            setattr(gpt2, name, recording(name))
        act()
    finally:
        for name, original in originals.items():
            setattr(gpt2, name, original)
    return calls


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """A block whose random numbers are the same every time, and whose use of them changes nothing outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield
