"""From a prompt to samples: the prompt's tokens, a generator, and one text stream for every sample."""

from collections.abc import Iterator, Sequence

from quillgpt.errors import ConfigError
from quillgpt.model.gpt import GPT
from quillgpt.sample.generator import Generator, continued
from quillgpt.sample.settings import SamplingSettings, check_prompt, stop_strings
from quillgpt.sample.text import TextStream
from quillgpt.tokenizer import Tokenizer

SAMPLES_AT_ONCE = 8
"""Samples that share a forward pass; more would need a larger cache (75 MB for each at 124M) for little speed."""


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
    r"""Continue a prompt; return the continuations, without the prompt. `LIMITS` has what is possible for each number.

        model, tokenizer = quillgpt.load_model("runs/python")
        for text in quillgpt.generate(model, tokenizer, "def main", max_new_tokens=50, num_samples=2, stop="\n\n"):
            print("def main" + text)

    An empty prompt begins a new document. A sample ends at the end of its document, before a stop string, or after
    max_new_tokens. `stream` gives one sample piece by piece.
    """
    settings = SamplingSettings(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        num_samples=num_samples,
        seed=seed,
        stop=stop_strings(stop),
    )
    return list(samples(model, tokenizer, prompt_tokens(tokenizer, prompt), settings))


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt; an empty one is the end-of-text token, after which a document begins."""
    check_prompt(prompt)
    return tokenizer.encode(prompt) or [tokenizer.end_of_text]


def stream(model: GPT, tokenizer: Tokenizer, prompt: Sequence[int], settings: SamplingSettings) -> Iterator[str]:
    """Yield the text of the first sample piece by piece; together it is the first of `samples`."""
    check_vocabulary(model, tokenizer)
    text = TextStream(tokenizer, settings.stop)
    for tokens in continued(Generator(model, len(prompt) + settings.max_new_tokens), prompt, settings, [0]):
        yield text.feed(int(tokens[0]))
        if text.is_finished:
            return
    yield text.finish()


def samples(model: GPT, tokenizer: Tokenizer, prompt: Sequence[int], settings: SamplingSettings) -> Iterator[str]:
    """Yield the text of every sample, in order; a few are generated together."""
    check_vocabulary(model, tokenizer)
    for first in range(0, settings.num_samples, SAMPLES_AT_ONCE):
        indices = range(first, min(first + SAMPLES_AT_ONCE, settings.num_samples))
        yield from _together(model, tokenizer, prompt, settings, indices)


def check_vocabulary(model: GPT, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that does not know every token of the model, or knows others."""
    if tokenizer.vocab_size != model.config.vocab_size:
        sizes = f"the model has {model.config.vocab_size:,} tokens and {tokenizer.name} {tokenizer.vocab_size:,}"
        raise ConfigError(f"tokenizer: {sizes}; use the one the model was trained with")


def _together(
    model: GPT, tokenizer: Tokenizer, prompt: Sequence[int], settings: SamplingSettings, indices: Sequence[int]
) -> list[str]:
    """The texts of a few samples that share their forward passes; one that is finished is computed on but not read."""
    texts = [TextStream(tokenizer, settings.stop) for _ in indices]
    pieces: list[list[str]] = [[] for _ in indices]
    for tokens in continued(Generator(model, len(prompt) + settings.max_new_tokens), prompt, settings, indices):
        for row, token in enumerate(tokens.tolist()):
            if not texts[row].is_finished:
                pieces[row].append(texts[row].feed(token))
        if all(text.is_finished for text in texts):
            break
    for row, text in enumerate(texts):
        pieces[row].append(text.finish())
    return ["".join(parts) for parts in pieces]
