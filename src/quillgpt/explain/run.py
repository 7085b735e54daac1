"""Train gpt2.py on a text and evaluate it on a part that it has not seen: the lines of `quill explain --run FILE`."""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from quillgpt.explain import gpt2

MERGE_CHARACTERS = 50_000  # enough to see which pairs are frequent
LOGGED_STEPS = 12
SAMPLE_TOKENS = 150
WINDOWS_PER_PASS = 64


def run(text: str, config: gpt2.Config) -> Iterator[str]:
    """Train on the first nine tenths of the text; yields the lines to print.

    A text of too few tokens is a `ValueError`.
    """
    cut = len(text) * 9 // 10
    merges = gpt2.learn_merges(text[: min(cut, MERGE_CHARACTERS)], config.vocab_size - 256)
    train, val = (torch.tensor(gpt2.encode(part, merges)) for part in (text[:cut], text[cut:]))
    fewest, needed = min(len(train), len(val)), config.context_length + 1
    if fewest < needed:
        raise ValueError(
            f"a part has {fewest} tokens (must be >= {needed}); take a longer text that repeats itself less"
        )
    weights = gpt2.initial_weights(config)
    size = sum(weight.numel() for weight in weights.values())
    yield f"{len(text):,} characters, {len(train) + len(val):,} tokens; the last tenth is for validation"
    yield f"{size:,} parameters, {config.steps:,} steps of {config.batch_size} x {config.context_length} tokens"
    yield ""
    started = time.perf_counter()
    for step, loss in enumerate(gpt2.train(weights, train, config)):
        if step % max(1, config.steps // LOGGED_STEPS) == 0 or step == config.steps - 1:
            yield f"step {step:5,}   loss {loss:.3f}   {time.perf_counter() - started:4.0f} s"
    yield ""
    yield f"{'validation text':<24}nats per token   bits per byte"
    bytes_per_token = len(text[cut:].encode()) / len(val)
    for name, loss in validation_losses(train, val, weights, config).items():
        yield f"{name:<24}{loss:14.3f}{loss / math.log(2) / bytes_per_token:16.3f}"
    prompt = val[: config.context_length // 2].tolist()
    yield f"\nthe validation text begins\n{gpt2.decode(prompt, merges)}"
    continuation = list(gpt2.sample(prompt, SAMPLE_TOKENS, weights, config))
    yield f"\nthe model continues\n{gpt2.decode(continuation, merges)}"


@torch.no_grad()
def validation_losses(train: Tensor, val: Tensor, weights: gpt2.Tensors, config: gpt2.Config) -> dict[str, float]:
    """Losses on the validation tokens in nats per token: of a uniform guess, of token frequencies, of the model."""
    length = config.context_length
    count = (len(val) - 1) // length
    inputs, targets = (val[start : start + count * length].view(count, length) for start in (0, 1))
    counts = train.bincount(minlength=config.vocab_size) + 1  # smoothed: no probability is 0
    frequency_losses = -(counts / counts.sum()).log()  # (V)
    losses = [
        gpt2.cross_entropy(gpt2.gpt(x, weights, config), y) * len(x)
        for x, y in zip(inputs.split(WINDOWS_PER_PASS), targets.split(WINDOWS_PER_PASS), strict=True)
    ]
    return {
        "uniform guess": math.log(config.vocab_size),
        "token frequencies": frequency_losses[targets].mean().item(),
        "this model": torch.stack(losses).sum().item() / count,
    }
