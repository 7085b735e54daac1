"""GPT-2 in one file, from a text to a model that continues it [Radford 2019].

Read it from top to bottom; `python gpt2.py FILE.txt` runs it. torch multiplies matrices,
draws random numbers and finds gradients; all else is written out. The names are the real
model's, and tests hold both to the same numbers. Shapes stand at the end of a line:
B sequences, T tokens in each, C channels, H heads of D channels, V tokens to choose from.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

# 1. Settings: the numbers that somebody has to choose


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model that two CPU cores train in a minute, and what the smallest GPT-2 has."""

    n_layer: int = 2  # GPT-2: 12
    n_head: int = 4  # H, GPT-2: 12
    n_embd: int = 128  # C, GPT-2: 768
    context_length: int = 64  # the largest T, GPT-2: 1024
    vocab_size: int = 512  # V, GPT-2: 50257
    steps: int = 600
    batch_size: int = 16  # B, GPT-2: 512
    lr: float = 2e-3  # the learning rate at its highest
    min_lr: float = 2e-4
    warmup_steps: int = 50
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    temperature: float = 0.8
    top_k: int = 50


# 2. Text: from characters to numbers
# A text is a row of bytes, numbers below 256. Two that often stand side by side become one
# token, and so do two tokens: h e -> he, t he -> the. A common word ends up as one number,
# a rare one as several [Sennrich 2016]. Here a token is a character, so that merging is
# `replace`. (GPT-2 has 50,000 merges, and cuts the text into words before.)


def learn_merges(text: str, count: int) -> list[str]:
    """Merge the most frequent pair, again and again; returns the pairs in this order."""
    tokens, merges = text.encode().decode("latin-1"), []  # one character for each byte
    while len(merges) < count and len(tokens) > 1:
        pair = "".join(Counter(pairwise(tokens)).most_common(1)[0][0])
        tokens = tokens.replace(pair, chr(256 + len(merges)))
        merges.append(pair)
    return merges


def encode(text: str, merges: list[str]) -> list[int]:
    """The tokens of a text: its bytes, merged in the order in which merges were learned."""
    tokens = text.encode().decode("latin-1")
    for number, pair in enumerate(merges):
        tokens = tokens.replace(pair, chr(256 + number))
    return [ord(token) for token in tokens]


def decode(tokens: list[int], merges: list[str]) -> str:
    """The text of the tokens: every merge is undone, the last one first."""
    text = "".join(chr(token) for token in tokens)
    for number in reversed(range(len(merges))):
        text = text.replace(chr(256 + number), merges[number])
    return text.encode("latin-1").decode(errors="replace")


# 3. Weights: all that a model knows
# A model is a set of named tensors. They begin as small random numbers, and training
# changes nothing else. What is added to the residual stream (see 4) begins smaller, so that
# the stream does not grow with the number of layers [Radford 2019, 2.3].


def initial_weights(config: Config) -> Tensors:
    """The weights before training, by name; a matrix is (channels out, channels in)."""
    width, small = config.n_embd, 0.02 / math.sqrt(2 * config.n_layer)
    weights = {
        "token_embedding.weight": torch.normal(0.0, 0.02, (config.vocab_size, width)),
        "position_embedding.weight": torch.normal(0.0, 0.02, (config.context_length, width)),
    }
    for block in (f"blocks.{layer}" for layer in range(config.n_layer)):
        for name, rows, columns, std in (
            ("attention.qkv", 3 * width, width, 0.02),
            ("attention.projection", width, width, small),
            ("mlp.expand", 4 * width, width, 0.02),
            ("mlp.project", width, 4 * width, small),
        ):
            weights[f"{block}.{name}.weight"] = torch.normal(0.0, std, (rows, columns))
            weights[f"{block}.{name}.bias"] = torch.zeros(rows)
        for norm in (f"{block}.norm_1", f"{block}.norm_2", "final_norm"):
            weights[f"{norm}.weight"] = torch.ones(width)
            weights[f"{norm}.bias"] = torch.zeros(width)
    return {name: weight.requires_grad_() for name, weight in weights.items()}


# 4. Model: from tokens to a score for every possible next token
# Each token has C channels, its residual stream. Every block adds to it twice: attention
# compares a token's query with the keys of earlier ones and brings in their values, mixed
# by how well they fit; the MLP, two linear layers and a switch, works on each token alone.


def linear(x: Tensor, weights: Tensors, name: str) -> Tensor:
    """Each channel out is a weighted sum of all channels in: (..., in) -> (..., out)."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x: Tensor, weights: Tensors, name: str) -> Tensor:
    """Each token's channels, brought to mean 0 and variance 1, then scaled [Ba 2016]."""
    centred = x - x.mean(dim=-1, keepdim=True)  # (B, T, C)
    variance = centred.square().mean(dim=-1, keepdim=True)  # (B, T, 1)
    scaled = centred / torch.sqrt(variance + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    """A smooth switch: far above 0 all passes, far below nothing [Hendrycks 2016]."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(scores: Tensor) -> Tensor:
    """From scores to shares: none below 0, and 1 together along the last axis."""
    powers = torch.exp(scores - scores.amax(dim=-1, keepdim=True))  # at most 1: no overflow
    return powers / powers.sum(dim=-1, keepdim=True)


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """How much each token takes from each earlier one: two (B, H, T, D) -> (B, H, T, T)."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    is_visible = torch.ones_like(scores, dtype=torch.bool).tril()  # itself and earlier ones
    return softmax(scores.masked_fill(~is_visible, -math.inf))


def attention(x: Tensor, weights: Tensors, name: str, n_head: int) -> Tensor:
    """Each token gathers from earlier ones, in H ways at once [Vaswani 2017, 3.2]."""
    parts = linear(x, weights, f"{name}.qkv").chunk(3, dim=-1)  # three of (B, T, C)
    query, key, value = (part.unflatten(-1, (n_head, -1)).transpose(1, 2) for part in parts)
    mixed = attention_weights(query, key) @ value  # (B, H, T, T) @ (B, H, T, D)
    return linear(mixed.transpose(1, 2).flatten(2), weights, f"{name}.projection")


def gpt(tokens: Tensor, weights: Tensors, config: Config) -> Tensor:
    """A score for every token that could be next: (B, T) -> logits (B, T, V)."""
    x = weights["token_embedding.weight"][tokens]  # (B, T, C)
    x = x + weights["position_embedding.weight"][: tokens.shape[1]]  # (T, C) to all B
    for block in (f"blocks.{layer}" for layer in range(config.n_layer)):
        normed = layer_norm(x, weights, f"{block}.norm_1")
        x = x + attention(normed, weights, f"{block}.attention", config.n_head)
        normed = layer_norm(x, weights, f"{block}.norm_2")
        wide = gelu(linear(normed, weights, f"{block}.mlp.expand"))  # (B, T, 4 C)
        x = x + linear(wide, weights, f"{block}.mlp.project")
    x = layer_norm(x, weights, "final_norm")
    return x @ weights["token_embedding.weight"].T  # one matrix reads and writes tokens


# 5. Training: small steps that make the model less surprised
# The loss is the surprise, -ln p, at the token that really follows. Its gradient says how
# it grows with each weight, and AdamW goes the other way: by the mean gradient over the
# root of its mean square, so a weight that is always pushed the same way takes a full step,
# and one that is pushed to and fro a small one [Kingma 2015, Loshchilov 2019].


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean surprise in nats per token, of (B, T, V) at (B, T); knowing nothing costs ln V."""
    log_probabilities = logits - logits.logsumexp(dim=-1, keepdim=True)  # (B, T, V)
    return -log_probabilities.gather(-1, targets[..., None]).mean()


def batch(tokens: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Random pieces of the text, and as targets the same moved on by one; both (B, T)."""
    starts = torch.randint(len(tokens) - config.context_length, (config.batch_size, 1))
    places = starts + torch.arange(config.context_length)  # (B, 1) + (T) -> (B, T)
    return tokens[places], tokens[places + 1]


def learning_rate(step: int, config: Config) -> float:
    """Up a straight line while the means are rough, then down a cosine [Loshchilov 2017]."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def adamw(weights: Tensors, gradients: Tensors, moments: dict, step: int, config: Config) -> None:
    """Move every weight, in place; matrices also shrink a little, biases and norms do not."""
    for name, gradient in gradients.items():
        weight, (mean, square) = weights[name], moments[name]
        mean += (1 - config.beta1) * (gradient - mean)
        square += (1 - config.beta2) * (gradient**2 - square)
        true_mean = mean / (1 - config.beta1 ** (step + 1))  # as if it had not begun at 0
        true_square = square / (1 - config.beta2 ** (step + 1))
        shrink = config.weight_decay if weight.ndim >= 2 else 0.0
        change = true_mean / (true_square.sqrt() + config.eps) + shrink * weight
        weight -= learning_rate(step, config) * change


def train(weights: Tensors, tokens: Tensor, config: Config) -> Iterator[float]:
    """Learn from the text; yields the loss of each step."""
    moments = {name: (torch.zeros_like(x), torch.zeros_like(x)) for name, x in weights.items()}
    for step in range(config.steps):
        inputs, targets = batch(tokens, config)
        loss = cross_entropy(gpt(inputs, weights, config), targets)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        share = (config.gradient_clip / (norm + 1e-6)).clamp(max=1)  # [Pascanu 2013]
        clipped = (share * gradient for gradient in gradients)  # no batch may do much harm
        adamw(weights, dict(zip(weights, clipped, strict=True)), moments, step, config)
        yield loss.item()


# 6. Sampling: the model says what may follow, one token is drawn, and so on


@torch.no_grad()
def sample(prompt: list[int], count: int, weights: Tensors, config: Config) -> Iterator[int]:
    """Continue the prompt with tokens on whose share a random point falls, of the k likeliest: k = 1 is greedy."""
    window = prompt[-config.context_length :]
    for _ in range(count):
        logits = gpt(torch.tensor([window]), weights, config)[0, -1]  # (V)
        is_likely = logits >= logits.topk(config.top_k).values[-1]
        shares = softmax(logits.masked_fill(~is_likely, -math.inf) / config.temperature)
        window += [min(int((shares.cumsum(0) <= torch.rand((), dtype=torch.float64)).sum()), len(shares) - 1)]
        yield window[-1]
        if len(window) > config.context_length:  # full: go on with its last half
            window = window[-max(1, config.context_length // 2) :]


# 7. Run: all of it, on a text of yours

if __name__ == "__main__":
    config, text = Config(), Path(sys.argv[1]).read_text(encoding="utf-8")
    merges = learn_merges(text[:50_000], config.vocab_size - 256)
    tokens, weights = torch.tensor(encode(text, merges)), initial_weights(config)
    for step, loss in enumerate(train(weights, tokens, config)):
        if step % 50 == 0:
            print(f"step {step:4}  loss {loss:.3f}")
    print(decode(list(sample(tokens[:64].tolist(), 200, weights, config)), merges))
