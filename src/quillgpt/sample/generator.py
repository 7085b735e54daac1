"""A model that continues tokens: `prefill` reads a prompt, `decode` one token per sample; both return next logits.

What the model sees is a window of at most context_length tokens. When the window is full, the next token makes it keep
its last half and be encoded again from position 0, so that generation goes on without end:

    context_length 8    window  a b c d e f g h       next token i
                        window          e f g h → f g h i, encoded again from position 0; room for four more

`Generator` keeps keys and values in a cache; `RecomputingGenerator` follows the same rule without one. It is the slow,
obviously right reference: tests hold their tokens equal and benchmarks/cached_sampling.py compares their speed.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache
from quillgpt.sample.sampling import choose, sample_generator
from quillgpt.sample.settings import SamplingSettings


class Continues(Protocol):
    """What both generators do."""

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read the prompts (B, T), forgetting what was before; return the next token's logits (B, V)."""
        ...

    def fork(self, samples: int) -> None:
        """Continue the one sequence read so far as several."""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence (B,); return the next token's logits (B, V)."""
        ...


class Generator:
    """A model and its cache: every token is encoded once, except where the window is cut."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self._window = torch.empty(0, 0, dtype=torch.int64)
        self._cache = self._new_cache(1)

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read the prompts (B, T), forgetting what was before; return the next token's logits (B, V).

        Of a prompt longer than the context only the last context_length tokens are read.
        """
        self._window = last_tokens(tokens, self.model.config.context_length)
        if self._cache.batch_size != len(tokens):
            self._cache = self._new_cache(len(tokens))
        return self._encode_window()

    def fork(self, samples: int) -> None:
        """Continue the one sequence read so far as several; its keys and values are copied, not computed again."""
        single, held = self._cache, self._cache.length
        self._window = self._window.expand(samples, -1)
        self._cache = self._new_cache(samples)
        self._cache.keys[:, :, :, :held] = single.keys[:, :, :, :held]
        self._cache.values[:, :, :, :held] = single.values[:, :, :, :held]
        self._cache.advance(held)

    def decode(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence (B,); return the next token's logits (B, V)."""
        longer = next_window(self._window, tokens, self.model.config.context_length)
        is_cut = longer.shape[1] <= self._window.shape[1]
        self._window = longer
        return self._encode_window() if is_cut else next_logits(self.model, longer[:, -1:], self._cache)

    def _encode_window(self) -> Tensor:
        self._cache.clear()
        return next_logits(self.model, self._window, self._cache)

    def _new_cache(self, sequences: int) -> KVCache:
        weight = next(self.model.parameters())
        return KVCache(self.model.config, sequences, weight.device, weight.dtype)


class RecomputingGenerator:
    """The reference without a cache: every step encodes the whole window."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self._window = torch.empty(0, 0, dtype=torch.int64)

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read the prompts (B, T), forgetting what was before; return the next token's logits (B, V)."""
        self._window = last_tokens(tokens, self.model.config.context_length)
        return next_logits(self.model, self._window, None)

    def fork(self, samples: int) -> None:
        """Continue the one sequence read so far as several."""
        self._window = self._window.expand(samples, -1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence (B,); return the next token's logits (B, V)."""
        self._window = next_window(self._window, tokens, self.model.config.context_length)
        return next_logits(self.model, self._window, None)


def last_tokens(tokens: Tensor, context_length: int) -> Tensor:
    """The prompts (B, T), cut on the left to what the model can see."""
    return tokens[:, -context_length:]


def next_window(window: Tensor, tokens: Tensor, context_length: int) -> Tensor:
    """The window (B, S) and one more token of every sequence (B,); of a full one the last half, with that token."""
    longer = torch.cat([window, tokens[:, None]], dim=1)
    if longer.shape[1] <= context_length:
        return longer
    return longer[:, -max(1, context_length // 2) :]


def next_logits(model: GPT, tokens: Tensor, cache: KVCache | None) -> Tensor:
    """Logits (B, V) after the last of the tokens (B, T), without gradients and without dropout.

    Only the last position goes through the output head: at GPT-2's vocabulary the head is a third of the work.
    """
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.no_grad():
            hidden = model.hidden(tokens.to(next(model.parameters()).device), cache)
            return model.logits(hidden[:, -1:])[:, 0]
    finally:
        if was_training:
            model.train()


def continued(
    generator: Continues, prompt: Sequence[int], settings: SamplingSettings, samples: Sequence[int]
) -> Iterator[Tensor]:
    """Yield the next token of every sample (B,), max_new_tokens times; the caller stops earlier by leaving the loop.

    prompt: at least one token, the same for all. samples: the indices of the B samples, which seed their randomness.
    """
    randomness = [sample_generator(settings.seed, sample) for sample in samples]
    logits = generator.prefill(torch.tensor([list(prompt)])).expand(len(samples), -1)
    if len(samples) > 1:
        generator.fork(len(samples))
    tokens = choose(logits, settings, randomness)
    yield tokens
    for _ in range(settings.max_new_tokens - 1):
        tokens = choose(generator.decode(tokens), settings, randomness)
        yield tokens
