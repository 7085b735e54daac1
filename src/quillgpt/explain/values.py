"""What `quill explain` shows next to each function of gpt2.py: values of a tiny run, computed by that file's functions.

The run learns four sentences in a second or two. To show something next to another function: a method `_show_NAME`.
"""

import contextlib
import dataclasses
import functools
import math
import random
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from quillgpt.explain import gpt2
from quillgpt.explain.drawing import Bar, Curve, HeatMap, Shown, columns, note, printable, tensor_line, visible

SENTENCES = (
    "the cat sat on the mat. ",
    "the dog sat on the log. ",
    "the fox sat in the box. ",
    "the hen sat in the pen. ",
)
PROMPT = "the dog sat on the "
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 16, "vocab_size": 265}
CONFIG = gpt2.Config(**SHAPE, steps=300, batch_size=8, lr=1e-2, min_lr=1e-3, warmup_steps=10, top_k=5)
SMALLEST_GPT2 = gpt2.Config(n_layer=12, n_head=12, n_embd=768, context_length=1024, vocab_size=50257)
RECORDED = ("linear", "layer_norm", "attention_weights", "attention", "gpt")
Calls = dict[str, list[tuple[tuple[Any, ...], Tensor]]]


class TinyRun:
    """A text, its tokens, and a model before and after training; it trains on the first use of `training`."""

    def __init__(self) -> None:
        self.text = "".join(random.Random(1).choices(SENTENCES, k=80))
        self.merges = gpt2.learn_merges(self.text, CONFIG.vocab_size - 256)
        self.tokens = torch.tensor(gpt2.encode(self.text, self.merges))  # (N)
        self.prompt = gpt2.encode(PROMPT, self.merges)
        self.inputs = torch.tensor([self.prompt])  # (1, T)
        with seeded():
            self.weights = gpt2.initial_weights(CONFIG)
        self.calls = recorded_calls(self.inputs, self.weights)

    @functools.cached_property
    def training(self) -> tuple[gpt2.Tensors, list[float]]:
        """The weights after training, and the loss of each step."""
        weights = {name: weight.detach().clone().requires_grad_() for name, weight in self.weights.items()}
        with seeded():
            return weights, list(gpt2.train(weights, self.tokens, CONFIG))

    def values(self, name: str) -> Shown:
        """What to show next to the function or class of gpt2.py with that name; nothing for other names."""
        show = getattr(self, f"_show_{name.lower()}", None)
        return show() if show else []

    def visible_tokens(self, tokens: list[int]) -> list[str]:
        """The text of each token, as it is shown."""
        return [visible(gpt2.decode([token], self.merges)) for token in tokens]

    def _show_config(self) -> Shown:
        names = ["n_layer", "n_head", "n_embd", "context_length", "vocab_size", "steps", "batch_size", "lr"]
        rows = [(name, getattr(CONFIG, name), getattr(gpt2.Config(), name)) for name in names]
        return [
            note("an even smaller model runs here"),
            columns(("", "here", "file"), *rows, right=(1, 2)),
            Text(),
            note("on a text of four sentences, in random order"),
            *(Text(visible(sentence)) for sentence in SENTENCES),
        ]

    def _show_learn_merges(self) -> Shown:
        rows = [
            (256 + number, *self.visible_tokens([*map(ord, pair)]), "->", *self.visible_tokens([256 + number]))
            for number, pair in enumerate(self.merges)
        ]
        return [note("the merges of the text (_ is a space)"), columns(*rows)]

    def _show_encode(self) -> Shown:
        return [
            Text(f"{visible(PROMPT)}   {len(PROMPT.encode())} bytes, {len(self.prompt)} tokens"),
            columns(self.visible_tokens(self.prompt), self.prompt),
            Text(f"all of the text: {len(self.text.encode()):,} bytes, {len(self.tokens):,} tokens"),
        ]

    def _show_decode(self) -> Shown:
        return [Text(f"{self.prompt[:4]} -> {visible(gpt2.decode(self.prompt[:4], self.merges))!r}")]

    def _show_initial_weights(self) -> Shown:
        """Name, shape and spread of the weights up to the end of the first block, and the number of parameters."""
        rows = []
        for name, weight in self.weights.items():
            if name.endswith("weight") and not re.match(r"blocks\.[1-9]", name):
                spread = weight.std().item()
                initial = f"+-{spread:.3f}" if spread else f"{weight.mean():.0f}"
                rows.append((name.removesuffix(".weight"), " x ".join(map(str, weight.shape)), initial))
        with torch.device("meta"):  # shapes without numbers
            gpt2_size = sum(weight.numel() for weight in gpt2.initial_weights(SMALLEST_GPT2).values())
        size = sum(weight.numel() for weight in self.weights.values())
        return [
            columns(("weight of", "shape", "initial"), *rows, right=(1, 2)),
            note(f"the same in blocks.1; the {sum(name.endswith('bias') for name in self.weights)} biases start at 0"),
            Text(f"{size:,} parameters; the smallest GPT-2: {gpt2_size:,}"),
        ]

    def _show_linear(self) -> Shown:
        (x, weights, name), out = self.calls["linear"][0]
        lines = [tensor_line("x", x), tensor_line("weight", weights[f"{name}.weight"]), tensor_line("out", out)]
        return [note(f"the first call, for {name}"), *lines]

    def _show_layer_norm(self) -> Shown:
        (x, _, _), out = self.calls["layer_norm"][0]
        rows = []
        for name, tensor in (("x", x), ("out", out)):
            token = tensor[0, 0]
            rows.append((name, f"{token.mean().abs():.3f}", f"{token.std(correction=0):.3f}"))
        table = columns(("first token", "mean", "std"), *rows, right=(1, 2))
        return [tensor_line("x", x), tensor_line("out", out), table]

    def _show_gelu(self) -> Shown:
        x = torch.arange(-3.0, 4.0)
        rows = [[f"{value:.2f}" for value in tensor.tolist()] for tensor in (x, gpt2.gelu(x))]
        return [columns(("x", *rows[0]), ("gelu", *rows[1]), right=range(1, 8))]

    def _show_softmax(self) -> Shown:
        scores = torch.tensor([2.0, 1.0, -1.0])
        pairs = zip(scores.tolist(), gpt2.softmax(scores).tolist(), strict=True)
        return [
            columns(("score", "p", ""), *((f"{score:.1f}", f"{p:.2f}", Bar(p)) for score, p in pairs), right=(0, 1))
        ]

    def _show_attention_weights(self) -> Shown:
        (query, key), weights = self.calls["attention_weights"][0]
        return [
            tensor_line("query", query),
            tensor_line("key", key),
            tensor_line("weights", weights),
            Text(),
            note("a row: how much this token attends to each"),
            note("(columns: the same tokens; not trained yet)"),
            self._heads(weights),
        ]

    def _show_attention(self) -> Shown:
        (x, _, _, _), out = self.calls["attention"][0]
        (query, key), weights = self.calls["attention_weights"][0]
        tensors = {"x": x, "q, k, v": self.calls["linear"][0][1]}
        tensors |= {"query": query, "key": key, "weights": weights, "out": out}
        return [tensor_line(name, tensor) for name, tensor in tensors.items()]

    def _show_gpt(self) -> Shown:
        (tokens, _, _), logits = self.calls["gpt"][0]
        return [
            tensor_line("tokens", tokens),
            tensor_line("logits", logits),
            Text(),
            note(f"after {visible(PROMPT)} (not trained yet)"),
            self._likeliest(logits),
        ]

    def _show_cross_entropy(self) -> Shown:
        inputs, targets = self.inputs[:, :-1], self.inputs[:, 1:]
        with torch.no_grad():
            logits = gpt2.gpt(inputs, self.weights, CONFIG)
            mean = gpt2.cross_entropy(logits, targets).item()
            losses = [gpt2.cross_entropy(logits[:, [i]], targets[:, [i]]).item() for i in range(targets.shape[1])]
        pairs = pairwise(self.visible_tokens(self.prompt))
        rows = [(*pair, f"{math.exp(-loss):.4f}", f"{loss:.2f}") for pair, loss in zip(pairs, losses, strict=True)]
        return [
            columns(("after", "comes", "p", "-ln p"), *rows, right=(2, 3)),
            Text(f"mean {mean:.2f}; ln {CONFIG.vocab_size} is {math.log(CONFIG.vocab_size):.2f}"),
        ]

    def _show_batch(self) -> Shown:
        with seeded():
            inputs, targets = gpt2.batch(self.tokens, CONFIG)
        rows = {
            name: self.visible_tokens(row[0, :6].tolist()) for name, row in (("input", inputs), ("target", targets))
        }
        table = columns(*((name, *row) for name, row in rows.items()))
        return [tensor_line("inputs", inputs), tensor_line("targets", targets), table]

    def _show_learning_rate(self) -> Shown:
        rates = [gpt2.learning_rate(step, CONFIG) for step in range(CONFIG.steps)]
        marks = (0, rates.index(max(rates)), CONFIG.steps - 1)
        return [Curve(rates), Text("step " + ", ".join(f"{step}: {rates[step]:.4f}" for step in marks))]

    def _show_adamw(self) -> Shown:
        """One weight in the first steps."""
        name = "final_norm.bias"
        weights = {name: self.weights[name].detach().clone()}
        moments = {name: (torch.zeros_like(weights[name]), torch.zeros_like(weights[name]))}
        rows = []
        for step in range(4):
            weight = weights[name].clone().requires_grad_()
            logits = gpt2.gpt(self.inputs[:, :-1], {**self.weights, name: weight}, CONFIG)
            gradient = torch.autograd.grad(gpt2.cross_entropy(logits, self.inputs[:, 1:]), weight)[0]
            gpt2.adamw(weights, {name: gradient}, moments, step, CONFIG)
            change = weights[name][0].item() - weight[0].item()
            rows.append((step, f"{gradient[0]:+.5f}", f"{gpt2.learning_rate(step, CONFIG):.4f}", f"{change:+.4f}"))
        return [
            note(f"a weight of {name}, always pushed down"),
            columns(("step", "gradient", "lr", "change"), *rows, right=(0, 1, 2, 3)),
        ]

    def _show_train(self) -> Shown:
        weights, losses = self.training
        calls = recorded_calls(self.inputs, weights)
        marks = [0, 25, 50, 100, CONFIG.steps - 1]
        return [
            note("the loss of each step"),
            Curve(losses),
            columns(("step", *marks), ("loss", *(f"{losses[step]:.2f}" for step in marks)), right=range(1, 6)),
            Text(),
            note("attention in the last layer, trained"),
            self._heads(calls["attention_weights"][-1][1]),
            Text(),
            note(f"after {visible(PROMPT)} (trained)"),
            self._likeliest(calls["gpt"][0][1]),
        ]

    def _show_sample(self) -> Shown:
        shown: Shown = [note(f"after {visible(PROMPT)} (trained)")]
        greedy, hot = dataclasses.replace(CONFIG, top_k=1), dataclasses.replace(CONFIG, temperature=3.0)
        for title, config in (("greedy", greedy), ("temperature 0.8", CONFIG), ("temperature 3", hot)):
            with seeded():
                tokens = list(gpt2.sample(self.prompt, 24, self.training[0], config))
            shown += [Text(title, style="bold"), Text(printable(gpt2.decode(tokens, self.merges)))]
        return shown

    def _heads(self, weights: Tensor) -> HeatMap:
        """The attention weights (1, H, T, T) of all heads over the prompt; masked ones are blank."""
        is_masked = torch.ones_like(weights[0], dtype=torch.bool).triu(diagonal=1)
        matrices = list(weights[0].masked_fill(is_masked, math.nan))
        titles = [f"head {number}" for number in range(1, len(matrices) + 1)]
        return HeatMap(titles, matrices, self.visible_tokens(self.prompt))

    def _likeliest(self, logits: Tensor) -> Table:
        """The likeliest tokens after the last one, with their probabilities. logits: (1, T, V)."""
        values, tokens = gpt2.softmax(logits[0, -1]).topk(3)
        pairs = zip(self.visible_tokens(tokens.tolist()), values.tolist(), strict=True)
        return columns(*((name, f"{100 * p:.1f} %", Bar(p)) for name, p in pairs), right=(1,))


@torch.no_grad()
def recorded_calls(inputs: Tensor, weights: gpt2.Tensors) -> Calls:
    """Arguments and result of each call of the `RECORDED` functions in a forward pass, by the function's name."""
    originals = {name: getattr(gpt2, name) for name in RECORDED}
    calls: Calls = {name: [] for name in RECORDED}

    def recording(name: str) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            result = originals[name](*arguments)
            calls[name].append((arguments, result))
            return result

        return call

    try:
        vars(gpt2).update({name: recording(name) for name in RECORDED})
        gpt2.gpt(inputs, weights, CONFIG)
    finally:
        vars(gpt2).update(originals)
    return calls


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """A block with its own random numbers, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield
