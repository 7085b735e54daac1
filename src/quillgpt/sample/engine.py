"""Generation on one page: from a prompt to tokens, and from tokens to the text of samples.

`prefill` reads a prompt, `decode` one token per sample; both return the logits of the next token. The model sees a
window of at most context_length tokens. When the window is full, its last half is kept with the next token and encoded
again from position 0, so that generation can continue without limit:

    context_length 8    window  a b c d e f g h       next token i
                        window          e f g h -> f g h i, encoded again from position 0; capacity for four more

`Generator` keeps keys and values in a cache. `RecomputingGenerator` follows the same rule without a cache: it is the
slow reference, to which tests hold the tokens equal.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from quillgpt.errors import ConfigError
from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache
from quillgpt.sample.sampling import sample_generator, sample_tokens
from quillgpt.sample.settings import SamplingSettings, check_prompt
from quillgpt.sample.text import TextStream
from quillgpt.tokenizer import Tokenizer

SAMPLES_PER_BATCH = 8
"""samples that share a forward pass; more need a larger cache (75 MB each at 124M) and gain little speed"""


class Generator:
    """A model and its cache: every token is encoded once, except when the window is cut.

    capacity: largest number of tokens, prompt and new ones together; None: context_length. Memory is allocated when a
    batch starts, not per token.
    """

    def __init__(self, model: GPT, capacity: int | None = None) -> None:
        self.model = model
        self._capacity = min(capacity or model.config.context_length, model.config.context_length)
        self._length = 0  # of the window, the first columns of self._tokens
        self._allocate(1)

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read the prompts (B, T), discarding earlier tokens; return the next token's logits (B, V).

        Only the last context_length tokens of a longer prompt are read.
        """
        if self._cache.batch_size != len(tokens):
            self._allocate(len(tokens))
        prompts = tokens[:, -self.model.config.context_length :]
        self._set_length(prompts.shape[1])
        self._tokens[:, : self._length] = prompts
        return self._encode_window()

    def fork(self, samples: int) -> None:
        """Continue the one sequence as several; its keys and values are copied, not computed again."""
        single, tokens = self._cache, self._tokens
        self._allocate(samples)
        self._tokens[:] = tokens
        self._cache.copy_from(single)

    def decode(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence (B,); return the next token's logits (B, V)."""
        if self._length == self.model.config.context_length:
            return self._cut(tokens)
        self._set_length(self._length + 1)
        self._tokens[:, self._length - 1] = tokens
        return next_logits(self.model, tokens[:, None], self._cache)

    def _cut(self, tokens: Tensor) -> Tensor:
        """Keep the last half of a full window with one more token of every sequence (B,), and encode it again."""
        kept = max(1, self._length // 2) - 1
        self._tokens[:, :kept] = self._tokens[:, self._length - kept :].clone()
        self._tokens[:, kept] = tokens
        self._length = kept + 1
        return self._encode_window()

    def _set_length(self, length: int) -> None:
        if length > self._capacity:
            raise ValueError(f"got {length} tokens; the capacity of this generator is {self._capacity}")
        self._length = length

    def _encode_window(self) -> Tensor:
        self._cache.clear()
        return next_logits(self.model, self._tokens[:, : self._length], self._cache)

    def _allocate(self, sequences: int) -> None:
        weight = next(self.model.parameters())
        self._cache = KVCache(self.model.config, sequences, weight.device, cache_dtype(weight), self._capacity)
        self._tokens = torch.zeros(sequences, self._capacity, dtype=torch.int64)


class RecomputingGenerator:
    """The reference without a cache: every step encodes the entire window."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self._window = torch.empty(0, 0, dtype=torch.int64)

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read the prompts (B, T), discarding earlier tokens; return the next token's logits (B, V)."""
        self._window = tokens[:, -self.model.config.context_length :]
        return next_logits(self.model, self._window, None)

    def fork(self, samples: int) -> None:
        """Continue the one sequence as several."""
        self._window = self._window.expand(samples, -1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence (B,); return the next token's logits (B, V)."""
        context_length = self.model.config.context_length
        self._window = torch.cat([self._window, tokens[:, None]], dim=1)
        if self._window.shape[1] > context_length:
            self._window = self._window[:, -max(1, context_length // 2) :]
        return next_logits(self.model, self._window, None)


def cache_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of cached keys and values: that of the weights, but never 16 bits on a CPU.

    On a CPU, attention of one query takes 2 to 8 times as long in bf16 as in fp32, more than the smaller memory saves.
    """
    return torch.promote_types(weight.dtype, torch.float32) if weight.device.type == "cpu" else weight.dtype


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


def generate_tokens(
    generator: Generator | RecomputingGenerator,
    prompt: Sequence[int],
    settings: SamplingSettings,
    samples: Sequence[int],
) -> Iterator[Tensor]:
    """Yield the next token of every sample (B,), max_new_tokens times, unless the caller stops.

    prompt: at least one token, the same for all. samples: the indices of the B samples, which seed their randomness.
    """
    generators = [sample_generator(settings.seed, sample) for sample in samples]
    logits = generator.prefill(torch.tensor([list(prompt)])).expand(len(samples), -1)
    if len(samples) > 1:
        generator.fork(len(samples))
    tokens = sample_tokens(logits, settings, generators)
    yield tokens
    for _ in range(settings.max_new_tokens - 1):
        tokens = sample_tokens(generator.decode(tokens), settings, generators)
        yield tokens


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    max_new_tokens: int = SamplingSettings.max_new_tokens,
    temperature: float = SamplingSettings.temperature,
    top_k: int = SamplingSettings.top_k,
    top_p: float = SamplingSettings.top_p,
    num_samples: int = SamplingSettings.num_samples,
    seed: int = SamplingSettings.seed,
    stop: str | Sequence[str] = (),
) -> list[str]:
    r"""Continue a prompt; return the continuations, without the prompt. `LIMITS` lists the valid values.

        model, tokenizer = quillgpt.load_model("runs/python")
        for text in quillgpt.generate(model, tokenizer, "def main", max_new_tokens=50, num_samples=2, stop="\n\n"):
            print("def main" + text)

    An empty prompt starts a new document. A sample ends at the end of its document, before a stop string, or after
    max_new_tokens. `stream` gives one sample piece by piece.
    """
    settings = SamplingSettings(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        num_samples=num_samples,
        seed=seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )
    return list(samples(model, tokenizer, prompt_tokens(tokenizer, prompt), settings))


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt; an empty one is the end-of-text token, after which a document begins."""
    check_prompt(prompt)
    return tokenizer.encode(prompt) or [tokenizer.end_of_text]


def samples(model: GPT, tokenizer: Tokenizer, prompt: Sequence[int], settings: SamplingSettings) -> Iterator[str]:
    """Yield the text of every sample, in order, generated in batches."""
    for first in range(0, settings.num_samples, SAMPLES_PER_BATCH):
        indices = range(first, min(first + SAMPLES_PER_BATCH, settings.num_samples))
        steps = _steps(model, tokenizer, prompt, settings, indices)
        yield from map("".join, zip(*steps, strict=True))


def stream(model: GPT, tokenizer: Tokenizer, prompt: Sequence[int], settings: SamplingSettings) -> Iterator[str]:
    """Yield the text of the first sample piece by piece; together it is the first of `samples`."""
    for (piece,) in _steps(model, tokenizer, prompt, settings, [0]):
        yield piece


def _steps(
    model: GPT, tokenizer: Tokenizer, prompt: Sequence[int], settings: SamplingSettings, indices: Sequence[int]
) -> Iterator[list[str]]:
    """Yield a piece of text of every sample of a batch, step by step; a finished one is computed, but has no text."""
    check_vocabulary(model, tokenizer)
    texts = [TextStream(tokenizer, settings.stop) for _ in indices]
    generator = Generator(model, len(prompt) + settings.max_new_tokens)
    for tokens in generate_tokens(generator, prompt, settings, indices):
        yield [text.feed(token) for text, token in zip(texts, tokens.tolist(), strict=True)]
        if all(text.is_finished for text in texts):
            return
    yield [text.finish() for text in texts]


def check_vocabulary(model: GPT, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose vocabulary is not that of the model."""
    if tokenizer.vocab_size != model.config.vocab_size:
        sizes = f"the model has {model.config.vocab_size:,} tokens and {tokenizer.name} {tokenizer.vocab_size:,}"
        raise ConfigError(f"tokenizer: {sizes}; use the one the model was trained with")
