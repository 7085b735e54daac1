"""What the tiny run has at each piece of gpt2.py: computed by that file's own functions, never written here.

To show something beside another function: a function of the run here, and a line in `VALUES` under its name.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from quillgpt.explain import gpt2
from quillgpt.explain.drawing import Bar, Curve, Heat, Shown, columns, printable, said, tensor_line, visible
from quillgpt.explain.tiny_run import CONFIG, PROMPT, SENTENCES, TinyRun, seeded

GPT2 = gpt2.Config(n_layer=12, n_head=12, n_embd=768, context_length=1024, vocab_size=50257)


def of_config(run: TinyRun) -> Shown:
    """The sizes of the tiny run."""
    names = ["n_layer", "n_head", "n_embd", "context_length", "vocab_size", "steps", "batch_size", "lr"]
    rows = [(name, getattr(CONFIG, name), getattr(gpt2.Config(), name)) for name in names]
    return [
        said("here runs an even smaller one, beside the file's"),
        columns(("", "here", "file"), *rows, right=(1, 2)),
        Text(),
        said("on a text of four sentences, in random order"),
        *(Text(visible(sentence)) for sentence in SENTENCES),
    ]


def of_learn_merges(run: TinyRun) -> Shown:
    """Every merge with its parts."""
    parts = [run.show([ord(token) for token in pair]) for pair in run.merges]
    whole = run.show(list(range(256, 256 + len(run.merges))))
    rows = [(256 + number, *pair, "->", joined) for number, (pair, joined) in enumerate(zip(parts, whole, strict=True))]
    return [said("the merges of the text (_ is a space)"), columns(*rows)]


def of_encode(run: TinyRun) -> Shown:
    """The prompt in bytes and in tokens."""
    return [
        Text(f"{visible(PROMPT)}   {len(PROMPT.encode())} bytes, {len(run.prompt)} tokens"),
        columns(run.show(run.prompt), run.prompt),
        Text(f"whole text: {len(run.text.encode()):,} bytes, {len(run.tokens):,} tokens"),
    ]


def of_decode(run: TinyRun) -> Shown:
    """A few tokens and their text."""
    return [Text(f"{run.prompt[:4]} -> {visible(gpt2.decode(run.prompt[:4], run.merges))!r}")]


def of_initial_weights(run: TinyRun) -> Shown:
    """Name, shape and spread of the weights up to the end of the first block, and how many there are."""
    names = [name for name in run.weights if name.endswith("weight") and not re.match(r"blocks\.[1-9]", name)]
    rows = [
        (name.removesuffix(".weight"), " x ".join(map(str, weight.shape)), _begins(weight))
        for name, weight in ((name, run.weights[name].detach()) for name in names)
    ]
    with torch.device("meta"):  # shapes without numbers
        largest = sum(weight.numel() for weight in gpt2.initial_weights(GPT2).values())
    biases = [name for name in run.weights if name.endswith("bias")]
    count = sum(weight.numel() for weight in run.weights.values())
    return [
        columns(("weight of", "shape", "begins"), *rows, right=(1, 2)),
        said(f"the same in blocks.1; the {len(biases)} biases begin at 0"),
        Text(f"{count:,} numbers; the smallest GPT-2: {largest:,}"),
    ]


def of_linear(run: TinyRun) -> Shown:
    """The first call: the product that makes queries, keys and values."""
    (x, weights, name), out = run.calls["linear"][0]
    return [
        said(f"the first time, for {name}"),
        tensor_line("x", x),
        tensor_line("weight", weights[f"{name}.weight"]),
        tensor_line("out", out),
    ]


def of_layer_norm(run: TinyRun) -> Shown:
    """The first call, with mean and spread of the first token's channels."""
    (x, _, _), out = run.calls["layer_norm"][0]
    rows = [
        (name, f"{abs(part[0, 0].mean()):.3f}", f"{part[0, 0].std(correction=0):.3f}")
        for name, part in (("x", x), ("out", out))
    ]
    return [
        tensor_line("x", x),
        tensor_line("out", out),
        columns(("first token", "mean", "spread"), *rows, right=(1, 2)),
    ]


def of_gelu(run: TinyRun) -> Shown:
    """A small table of the function."""
    x = torch.arange(-3.0, 4.0)
    rows = [[f"{value:.2f}" for value in part.tolist()] for part in (x, gpt2.gelu(x))]
    return [columns(("x", *rows[0]), ("gelu", *rows[1]), right=range(1, 8))]


def of_softmax(run: TinyRun) -> Shown:
    """Three scores and their shares."""
    scores = torch.tensor([2.0, 1.0, -1.0])
    shares = gpt2.softmax(scores).tolist()
    rows = [(f"{score:.1f}", f"{share:.2f}", Bar(share)) for score, share in zip(scores.tolist(), shares, strict=True)]
    return [columns(("score", "share", ""), *rows, right=(0, 1))]


def of_attention_weights(run: TinyRun) -> Shown:
    """The first call: both heads of the first layer, before training."""
    (query, key), shares = run.calls["attention_weights"][0]
    return [
        tensor_line("query", query),
        tensor_line("key", key),
        tensor_line("shares", shares),
        Text(),
        said("a row: how much this token takes from each"),
        said("(columns: the same tokens; not trained yet)"),
        _heads(run, shares),
    ]


def of_attention(run: TinyRun) -> Shown:
    """The shapes of the first call."""
    (x, _, _, _), out = run.calls["attention"][0]
    (query, key), shares = run.calls["attention_weights"][0]
    return [
        tensor_line("x", x),
        tensor_line("q, k, v", run.calls["linear"][0][1]),
        tensor_line("query", query),
        tensor_line("key", key),
        tensor_line("shares", shares),
        tensor_line("out", out),
    ]


def of_gpt(run: TinyRun) -> Shown:
    """From the prompt to the likeliest next tokens."""
    (tokens, _, _), logits = run.calls["gpt"][0]
    return [
        tensor_line("tokens", tokens),
        tensor_line("logits", logits),
        Text(),
        said(f"after {visible(PROMPT)} (not trained yet)"),
        _likeliest(run, logits),
    ]


def of_cross_entropy(run: TinyRun) -> Shown:
    """The surprise at every token of the prompt, and at all of them on average."""
    inputs, targets = run.inputs[:, :-1], run.inputs[:, 1:]
    with torch.no_grad():
        logits = gpt2.gpt(inputs, run.weights, CONFIG)
        mean = gpt2.cross_entropy(logits, targets).item()
        each = [gpt2.cross_entropy(logits[:, [i]], targets[:, [i]]).item() for i in range(targets.shape[1])]
    names = run.show(run.prompt)
    rows = [(*pair, f"{math.exp(-x):.4f}", f"{x:.2f}") for pair, x in zip(pairwise(names), each, strict=True)]
    return [
        columns(("after", "comes", "p", "-ln p"), *rows, right=(2, 3)),
        Text(f"on average {mean:.2f}; ln {CONFIG.vocab_size} is {math.log(CONFIG.vocab_size):.2f}"),
    ]


def of_batch(run: TinyRun) -> Shown:
    """One row of a batch, as text."""
    with seeded():
        inputs, targets = gpt2.batch(run.tokens, CONFIG)
    return [
        tensor_line("inputs", inputs),
        tensor_line("targets", targets),
        columns(("input", *run.show(inputs[0].tolist())[:6]), ("target", *run.show(targets[0].tolist())[:6])),
    ]


def of_learning_rate(run: TinyRun) -> Shown:
    """The rate of every step as a curve."""
    rates = [gpt2.learning_rate(step, CONFIG) for step in range(CONFIG.steps)]
    top = max(range(CONFIG.steps), key=rates.__getitem__)
    return [
        Curve(rates),
        Text(f"step 0: {rates[0]:.4f}, {top}: {rates[top]:.4f}, {CONFIG.steps - 1}: {rates[-1]:.4f}"),
    ]


def of_adamw(run: TinyRun) -> Shown:
    """One weight through the first steps."""
    name = "final_norm.bias"
    weights = {name: run.weights[name].detach().clone()}
    moments = {name: (torch.zeros_like(weights[name]), torch.zeros_like(weights[name]))}
    rows = []
    for step in range(4):
        whole = {**run.weights, **weights}
        whole[name] = weights[name].clone().requires_grad_()
        loss = gpt2.cross_entropy(gpt2.gpt(run.inputs[:, :-1], whole, CONFIG), run.inputs[:, 1:])
        gradient = torch.autograd.grad(loss, whole[name])[0]
        before = weights[name][0].item()
        gpt2.adamw(weights, {name: gradient}, moments, step, CONFIG)
        change = weights[name][0].item() - before
        rows.append((step, f"{gradient[0]:+.5f}", f"{gpt2.learning_rate(step, CONFIG):.4f}", f"{change:+.4f}"))
    return [
        said(f"a number of {name} is always pushed down"),
        columns(("step", "gradient", "lr", "change"), *rows, right=(0, 1, 2, 3)),
    ]


def of_train(run: TinyRun) -> Shown:
    """The loss by step, and what attention and the next token have become."""
    losses = run.training[1]
    marks = [0, 25, 50, 100, CONFIG.steps - 1]
    return [
        said("the loss of each step"),
        Curve(losses),
        columns(("step", *marks), ("loss", *(f"{losses[step]:.2f}" for step in marks)), right=range(1, 6)),
        Text(),
        said("attention in the last layer, trained"),
        _heads(run, run.trained_calls["attention_weights"][-1][1]),
        Text(),
        said(f"after {visible(PROMPT)} (trained)"),
        _likeliest(run, run.trained_calls["gpt"][0][1]),
    ]


def of_sample(run: TinyRun) -> Shown:
    """Greedy, and drawn at two temperatures."""
    configs = {
        "greedy": dataclasses.replace(CONFIG, top_k=1),
        "temperature 0.8": CONFIG,
        "temperature 3": dataclasses.replace(CONFIG, temperature=3.0),
    }
    shown: Shown = [said(f"after {visible(PROMPT)} (trained)")]
    for name, config in configs.items():
        with seeded():
            written = list(gpt2.sample(run.prompt, 24, run.training[0], config))
        shown += [Text(name, style="bold"), Text(printable(gpt2.decode(written, run.merges)))]
    return shown


def _begins(weight: Tensor) -> str:
    """The spread around 0 of random weights; of others, the value."""
    spread = weight.std().item()
    return f"+-{spread:.3f}" if spread else f"{weight.mean():.0f}"


def _heads(run: TinyRun, shares: Tensor) -> Heat:
    """The attention (1, H, T, T) of all heads to the prompt; later tokens, which nobody may see, are left out."""
    hidden = torch.ones_like(shares[0]).triu(diagonal=1).bool()
    matrices = list(shares[0].masked_fill(hidden, math.nan))
    return Heat([f"head {number}" for number in range(1, len(matrices) + 1)], matrices, run.show(run.prompt))


def _likeliest(run: TinyRun, logits: Tensor) -> RenderableType:
    """The likeliest tokens after the last one, with their probabilities. logits: (1, T, V)."""
    values, tokens = gpt2.softmax(logits[0, -1]).topk(3)
    names = run.show(tokens.tolist())
    rows = [(name, f"{100 * share:.1f} %", Bar(share)) for name, share in zip(names, values.tolist(), strict=True)]
    return columns(*rows, right=(1,))


VALUES: Mapping[str, Callable[[TinyRun], Shown]] = {
    "Config": of_config,
    "learn_merges": of_learn_merges,
    "encode": of_encode,
    "decode": of_decode,
    "initial_weights": of_initial_weights,
    "linear": of_linear,
    "layer_norm": of_layer_norm,
    "gelu": of_gelu,
    "softmax": of_softmax,
    "attention_weights": of_attention_weights,
    "attention": of_attention,
    "gpt": of_gpt,
    "cross_entropy": of_cross_entropy,
    "batch": of_batch,
    "learning_rate": of_learning_rate,
    "adamw": of_adamw,
    "train": of_train,
    "sample": of_sample,
}
