"""explain/model.py and explain/train.py, plain PyTorch, are held to the same numbers as gpt2.py."""

import functools
import runpy
import sys
from collections.abc import Iterator

import pytest
import torch
from same_numbers import CHECKS
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from quillgpt.explain import gpt2
from quillgpt.explain import train as plain
from quillgpt.explain.model import GPT


class PlainPyTorch:
    """The plain files under the names of gpt2.py, so that the same checks hold them."""

    Config = gpt2.Config
    batch = staticmethod(gpt2.batch)

    def initial_weights(self, config: gpt2.Config) -> dict[str, Tensor]:
        """A new model's weights; torch's own initial weights are drawn before, so the seed is set again."""
        seed = torch.initial_seed()
        model = GPT(config)
        torch.manual_seed(seed)
        model.initialize()
        return dict(model.named_parameters())

    def gpt(self, tokens: Tensor, weights: dict[str, Tensor], config: gpt2.Config) -> Tensor:
        """The model's logits with these weights."""
        return functional_call(GPT(config).double(), weights, tokens)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """torch's own."""
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def train(self, weights: dict[str, Tensor], tokens: Tensor, config: gpt2.Config) -> Iterator[float]:
        """Train a model that holds the weights, and put them back."""
        model = GPT(config).double()
        model.load_state_dict(weights)
        original, plain.batch = plain.batch, self.batch
        try:
            yield from plain.train(model, tokens, config)
        finally:
            plain.batch = original
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weights[name].copy_(weight)

    def sample(self, prompt: list[int], count: int, weights: dict[str, Tensor], config: gpt2.Config) -> Iterator[int]:
        """gpt2.sample continues with a plain model's weights."""
        with torch.random.fork_rng():  # the initial weights, which are overwritten, draw no number that counts
            model = GPT(config).double()
        model.load_state_dict(weights)
        return gpt2.sample(prompt, count, model.state_dict(), config)


@pytest.mark.parametrize("name", sorted(CHECKS.keys() - {"softmax", "batches"}))
def test_plain_pytorch_computes_what_the_real_code_computes(name: str) -> None:
    CHECKS[name](PlainPyTorch())


def test_the_plain_loop_runs_by_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpt2, "Config", functools.partial(gpt2.Config, steps=1))
    monkeypatch.setattr(sys, "argv", ["train.py", plain.__file__])

    runpy.run_path(plain.__file__, run_name="__main__")

    assert capsys.readouterr().out.startswith("step    0  loss 6.")
