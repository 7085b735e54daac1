"""GPT-2 in one file, from a text to a model that continues it [Radford 2019].

Read it from top to bottom; `python gpt2.py FILE.txt` runs it. torch multiplies matrices,
draws random numbers and computes gradients; everything else is here. The names are those of
the real model, and tests check that both compute the same numbers. Comments give shapes:
B sequences, T tokens in each, C channels, H heads of D channels, a vocabulary of V tokens.
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

# 1. Settings: the hyperparameters


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
    lr: float = 2e-3  # the highest learning rate
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
# A text is a sequence of bytes, numbers below 256. Two that are often adjacent become one
# token, and so do two tokens: h e -> he, t he -> the. A common word ends up as one number,
# a rare one as several [Sennrich 2016]. Here a token is a character, so that merging is
# `replace`. (GPT-2 has 50,000 merges, and first splits the text into words.)


def learn_merges(text: str, count: int) -> list[str]:
    """Merge the most frequent pair, `count` times; returns the pairs in this order."""
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
    """The text of the tokens: undoes every merge, the last one first."""
    text = "".join(chr(token) for token in tokens)
    for number in reversed(range(len(merges))):
        text = text.replace(chr(256 + number), merges[number])
    return text.encode("latin-1").decode(errors="replace")


# 3. Weights: everything a model learns
# A model is a set of named tensors. They start as small random numbers, and training
# changes nothing else. What is added to the residual stream (see 4) starts smaller, so that
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
# compares a token's query with the keys of earlier ones and adds up their values, weighted
# by how well they match; the MLP, two linear layers around a GELU, sees one token at a time.


def linear(x: Tensor, weights: Tensors, name: str) -> Tensor:
    """Each output channel is a weighted sum of the input channels: (..., in) -> (..., out)."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x: Tensor, weights: Tensors, name: str) -> Tensor:
    """Normalize each token's channels to mean 0 and variance 1, then scale them [Ba 2016]."""
    centred = x - x.mean(dim=-1, keepdim=True)  # (B, T, C)
    variance = centred.square().mean(dim=-1, keepdim=True)  # (B, T, 1)
    scaled = centred / torch.sqrt(variance + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    """A smooth ReLU: the identity far above 0, and 0 far below [Hendrycks 2016]."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(scores: Tensor) -> Tensor:
    """From scores to probabilities: not negative, with sum 1 along the last axis."""
    powers = torch.exp(scores - scores.amax(dim=-1, keepdim=True))  # at most 1: no overflow
    return powers / powers.sum(dim=-1, keepdim=True)


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """How much each token attends to each earlier one: two (B, H, T, D) -> (B, H, T, T)."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    is_visible = torch.ones_like(scores, dtype=torch.bool).tril()  # itself and earlier ones
    return softmax(scores.masked_fill(~is_visible, -math.inf))


def attention(x: Tensor, weights: Tensors, name: str, n_head: int) -> Tensor:
    """Multi-head self-attention over earlier tokens: (B, T, C) -> (B, T, C) [Vaswani 2017, 3.2]."""
    parts = linear(x, weights, f"{name}.qkv").chunk(3, dim=-1)  # three of (B, T, C)
    query, key, value = (part.unflatten(-1, (n_head, -1)).transpose(1, 2) for part in parts)
    heads = attention_weights(query, key) @ value  # (B, H, T, T) @ (B, H, T, D)
    return linear(heads.transpose(1, 2).flatten(2), weights, f"{name}.projection")


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


# 5. Training: small steps that lower the loss
# The loss is -ln p of the token that really follows. Its gradient says how it grows with
# each weight, and AdamW steps the other way, by the mean gradient over the root of the mean
# square gradient: a weight that is always pushed the same way takes a full step, and one
# that is pushed back and forth a small one [Kingma 2015, Loshchilov 2019].


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean -ln p in nats per token, of logits (B, T, V) at (B, T); a uniform guess has ln V."""
    log_probabilities = logits - logits.logsumexp(dim=-1, keepdim=True)  # (B, T, V)
    return -log_probabilities.gather(-1, targets[..., None]).mean()


def batch(tokens: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Random pieces of the text as inputs, shifted by one as targets; both (B, T)."""
    starts = torch.randint(len(tokens) - config.context_length, (config.batch_size, 1))
    indices = starts + torch.arange(config.context_length)  # (B, 1) + (T) -> (B, T)
    return tokens[indices], tokens[indices + 1]


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up while AdamW's means are rough, then cosine decay [Loshchilov 2017]."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def adamw(weights: Tensors, gradients: Tensors, moments: dict, step: int, config: Config) -> None:
    """Update every weight in place; matrices also decay a little, biases and norms do not."""
    for name, gradient in gradients.items():
        weight, (mean, square) = weights[name], moments[name]
        mean += (1 - config.beta1) * (gradient - mean)
        square += (1 - config.beta2) * (gradient**2 - square)
        true_mean = mean / (1 - config.beta1 ** (step + 1))  # corrects the start at 0
        true_square = square / (1 - config.beta2 ** (step + 1))
        decay = config.weight_decay if weight.ndim >= 2 else 0.0
        change = true_mean / (true_square.sqrt() + config.eps) + decay * weight
        weight -= learning_rate(step, config) * change


def train(weights: Tensors, tokens: Tensor, config: Config) -> Iterator[float]:
    """Train the weights in place on tokens (N); yields the loss of each step."""
    moments = {name: (torch.zeros_like(x), torch.zeros_like(x)) for name, x in weights.items()}
    for step in range(config.steps):
        inputs, targets = batch(tokens, config)
        loss = cross_entropy(gpt(inputs, weights, config), targets)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        scale = (config.gradient_clip / (norm + 1e-6)).clamp(max=1)  # [Pascanu 2013]
        clipped = (scale * gradient for gradient in gradients)  # limits the effect of one batch
        adamw(weights, dict(zip(weights, clipped, strict=True)), moments, step, config)
        yield loss.item()


# 6. Sampling: draw one token from the model's prediction, append it, repeat


@torch.no_grad()
def sample(prompt: list[int], count: int, weights: Tensors, config: Config) -> Iterator[int]:
    """Continue the prompt by `count` tokens, each drawn from the k most likely; k = 1 is greedy."""
    window = prompt[-config.context_length :]
    for _ in range(count):
        logits = gpt(torch.tensor([window]), weights, config)[0, -1]  # (V)
        is_likely = logits >= logits.topk(config.top_k).values[-1]
        p = softmax(logits.masked_fill(~is_likely, -math.inf) / config.temperature)
        window += [min(int((p.cumsum(0) <= torch.rand((), dtype=torch.float64)).sum()), len(p) - 1)]
        yield window[-1]
        if len(window) > config.context_length:  # full: keep its last half
            window = window[-max(1, config.context_length // 2) :]


# 7. Run: everything, on your own text

if __name__ == "__main__":
    config, text = Config(), Path(sys.argv[1]).read_text(encoding="utf-8")
    merges = learn_merges(text[:50_000], config.vocab_size - 256)
    tokens, weights = torch.tensor(encode(text, merges)), initial_weights(config)
    for step, loss in enumerate(train(weights, tokens, config)):
        if step % 50 == 0:
            print(f"step {step:4}  loss {loss:.3f}")
    print(decode(list(sample(tokens[:64].tolist(), 200, weights, config)), merges))
