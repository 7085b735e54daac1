"""Train gpt2.py on a text and judge it on a part it has not seen: what `quill explain --run FILE` prints."""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from quillgpt.explain import gpt2

MERGES_FROM = 50_000  # characters: enough to see which pairs are frequent
LOSSES_TOLD = 12
SAMPLE_TOKENS = 150
ROWS_AT_ONCE = 64


def run(text: str, config: gpt2.Config) -> Iterator[str]:
    """Train on the first nine tenths of the text; yields, line by line, what there is to tell.

    A text of too few tokens is a `ValueError`.
    """
    cut = len(text) * 9 // 10
    merges = gpt2.learn_merges(text[: min(cut, MERGES_FROM)], config.vocab_size - 256)
    known, held_out = (torch.tensor(gpt2.encode(part, merges)) for part in (text[:cut], text[cut:]))
    few, needed = min(len(known), len(held_out)), config.context_length + 1
    if few < needed:
        raise ValueError(
            f"a part of it has {few} tokens, {needed} are needed; take a longer text that repeats itself less"
        )
    weights = gpt2.initial_weights(config)
    count = sum(weight.numel() for weight in weights.values())
    yield f"{len(text):,} characters, {len(known) + len(held_out):,} tokens; the last tenth is held out"
    yield f"{count:,} weights, {config.steps:,} steps of {config.batch_size} x {config.context_length} tokens"
    yield ""
    started = time.perf_counter()
    for step, loss in enumerate(gpt2.train(weights, known, config)):
        if step % max(1, config.steps // LOSSES_TOLD) == 0 or step == config.steps - 1:
            yield f"step {step:5,}   loss {loss:.3f}   {time.perf_counter() - started:4.0f} s"
    yield ""
    yield f"{'the held-out text':<24}nats per token   bits per byte"
    bytes_per_token = len(text[cut:].encode()) / len(held_out)
    for name, loss in held_out_losses(known, held_out, weights, config).items():
        yield f"{name:<24}{loss:14.3f}{loss / math.log(2) / bytes_per_token:16.3f}"
    prompt = held_out[: config.context_length // 2].tolist()
    yield f"\nthe held-out text begins\n{gpt2.decode(prompt, merges)}"
    written = list(gpt2.sample(prompt, SAMPLE_TOKENS, weights, config))
    yield f"\nthe model continues\n{gpt2.decode(written, merges)}"


@torch.no_grad()
def held_out_losses(known: Tensor, held_out: Tensor, weights: gpt2.Tensors, config: gpt2.Config) -> dict[str, float]:
    """Loss on the held-out tokens, in nats per token: by chance, by how frequent each token is, by the model."""
    length = config.context_length
    rows = (len(held_out) - 1) // length
    inputs, targets = (held_out[start : start + rows * length].view(rows, length) for start in (0, 1))
    counts = known.bincount(minlength=config.vocab_size) + 1  # nothing is impossible
    surprise = -(counts / counts.sum()).log()
    parts = zip(inputs.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True)
    sums = [gpt2.cross_entropy(gpt2.gpt(part, weights, config), wanted) * len(part) for part, wanted in parts]
    return {
        "guessed evenly": math.log(config.vocab_size),
        "guessed by frequency": surprise[targets].mean().item(),
        "this model": torch.stack(sums).sum().item() / rows,
    }
