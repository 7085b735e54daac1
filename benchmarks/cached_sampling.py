"""How much the key-value cache saves: GPT-2 124M with random weights generates the same text with it and without it.

    python benchmarks/cached_sampling.py                # prompt 256, 256 new tokens, fp32
    python benchmarks/cached_sampling.py --tokens 16    # a quick look

Both take turns of a few tokens in one run, so that whatever else the machine does disturbs both alike. Greedy, one
sequence. The time is that of everything: reading the prompt, every forward pass, choosing the token. The reference is
not made slow: it too computes the logits of the last position only. The goal is at least 5 times faster with the cache.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from quillgpt.hardware import available_cores, cpu_name
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import SIZES, parameter_count
from quillgpt.sample.generator import Continues, Generator, RecomputingGenerator, continued
from quillgpt.sample.settings import SamplingSettings

GOAL = 5.0
TURN_TOKENS = 16


class Contender:
    """One way to generate, the tokens it has made so far and the seconds it took for them."""

    def __init__(self, name: str, generator: Continues, prompt: list[int], settings: SamplingSettings) -> None:
        self.name = name
        self.tokens: list[int] = []
        self.seconds = 0.0
        self._steps: Iterator[Tensor] = continued(generator, prompt, settings, [0])

    def take_turn(self, count: int) -> None:
        """Generate so many more tokens."""
        started = time.perf_counter()
        self.tokens += [int(next(self._steps)) for _ in range(count)]
        self.seconds += time.perf_counter() - started

    @property
    def tokens_per_second(self) -> float:
        """New tokens in a second."""
        return len(self.tokens) / self.seconds


def race(model: GPT, prompt: list[int], new_tokens: int) -> list[Contender]:
    """Let both generate the same continuation, in turns."""
    settings = SamplingSettings(temperature=0, max_new_tokens=new_tokens)
    generators = {"with the cache": Generator(model), "recomputing": RecomputingGenerator(model)}
    contenders = [Contender(name, generator, prompt, settings) for name, generator in generators.items()]
    for done in range(0, new_tokens, TURN_TOKENS):
        for contender in contenders:
            contender.take_turn(min(TURN_TOKENS, new_tokens - done))
    return contenders


def warm_up(model: GPT, prompt: list[int]) -> None:
    """The first passes also allocate memory and choose kernels; that is not what is measured."""
    race(model, prompt, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description="time sampling with and without the key-value cache")
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256, help="new tokens")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    model = GPT(SIZES[options.size]).eval()
    prompt = torch.randint(0, model.config.vocab_size, (options.prompt_tokens,)).tolist()
    print(f"{cpu_name()}, {options.threads} threads, torch {torch.__version__}, fp32")
    print(f"{parameter_count(model.config):,} parameters, prompt {options.prompt_tokens}, {options.tokens} new tokens")
    warm_up(model, prompt)
    cached, recomputing = race(model, prompt, options.tokens)
    for contender in (cached, recomputing):
        print(f"{contender.name:<15} {contender.tokens_per_second:7.2f} tokens/s  {contender.seconds:8.1f} s")
    ratio = recomputing.seconds / cached.seconds
    print(f"ratio {ratio:.2f} (goal: at least {GOAL:g}); tokens equal: {cached.tokens == recomputing.tokens}")


if __name__ == "__main__":
    main()
