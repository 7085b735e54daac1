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
    """A model and its cache: every token is encoded once, except where the window is cut.

    `room` is how many tokens will be read at most, prompt and new ones together; nothing: as many as the model can see.
    All memory is taken when a batch begins, none per token.
    """

    def __init__(self, model: GPT, room: int | None = None) -> None:
        self.model = model
        self._room = min(room or model.config.context_length, model.config.context_length)
        self._length = 0  # of the window, which begins in the first columns of self._tokens
        self._begin(1)

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read the prompts (B, T), forgetting what was before; return the next token's logits (B, V).

        Of a prompt longer than the context only the last context_length tokens are read.
        """
        if self._cache.batch_size != len(tokens):
            self._begin(len(tokens))
        read = last_tokens(tokens, self.model.config.context_length)
        self._take(read.shape[1])
        self._tokens[:, : self._length] = read
        return self._encode_window()

    def fork(self, samples: int) -> None:
        """Continue the one sequence read so far as several; its keys and values are copied, not computed again."""
        single, tokens = self._cache, self._tokens
        self._begin(samples)
        self._tokens[:] = tokens
        self._cache.take(single)

    def decode(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence (B,); return the next token's logits (B, V)."""
        if self._length == self.model.config.context_length:
            return self._cut(tokens)
        self._take(self._length + 1)
        self._tokens[:, self._length - 1] = tokens
        return next_logits(self.model, tokens[:, None], self._cache)

    def _cut(self, tokens: Tensor) -> Tensor:
        """Keep the last half of a full window with one more token of every sequence (B,), and encode it again."""
        kept = max(1, self._length // 2) - 1
        self._tokens[:, :kept] = self._tokens[:, self._length - kept :].clone()
        self._tokens[:, kept] = tokens
        self._length = kept + 1
        return self._encode_window()

    def _take(self, length: int) -> None:
        if length > self._room:
            raise ValueError(f"got {length} tokens; this generator was made with room for {self._room}")
        self._length = length

    def _encode_window(self) -> Tensor:
        self._cache.clear()
        return next_logits(self.model, self._tokens[:, : self._length], self._cache)

    def _begin(self, sequences: int) -> None:
        weight = next(self.model.parameters())
        self._cache = KVCache(self.model.config, sequences, weight.device, cache_dtype(weight), self._room)
        self._tokens = torch.zeros(sequences, self._room, dtype=torch.int64)


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


def cache_dtype(weight: Tensor) -> torch.dtype:
    """What keys and values are kept in: the dtype of the weights, but never 16 bits on a CPU.

    There attention of one query takes 2 to 8 times as long in bf16 as in fp32, more than the smaller memory saves.
    """
    return torch.promote_types(weight.dtype, torch.float32) if weight.device.type == "cpu" else weight.dtype


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
    """Logits (B, V) after the last of the tokens (B, T), without gradients and without dropout."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.inference_mode():
            return model.last_logits(tokens.to(next(model.parameters()).device), cache)
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
