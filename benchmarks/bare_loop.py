"""A GPT-2 without biases and its training loop in plain PyTorch, without quillgpt: the baseline of time_to_loss.py.

The model is nanoGPT's with the settings of its README's CPU command: learned positions, LayerNorm, GELU, tied head,
fp32, torch's fused attention, AdamW with decay on matrices, clipping, warm-up and cosine; sequences at random offsets.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Net:
    """Shape, batch and optimizer of a run; the defaults are those of nanoGPT's CPU command."""

    vocab_size: int = 65
    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 64
    batch: int = 12
    rate: float = 1e-3
    last_rate: float = 1e-4
    warmup: int = 100
    steps: int = 2000


class Block(nn.Module):
    """Attention and MLP, each with a residual connection."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.heads = net.heads
        self.before_attention = nn.LayerNorm(net.width, bias=False)
        self.qkv = nn.Linear(net.width, 3 * net.width, bias=False)
        self.projection = nn.Linear(net.width, net.width, bias=False)
        self.before_mlp = nn.LayerNorm(net.width, bias=False)
        self.expand = nn.Linear(net.width, 4 * net.width, bias=False)
        self.contract = nn.Linear(4 * net.width, net.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        rows, length, width = x.shape
        q, k, v = self.qkv(self.before_attention(x)).split(width, dim=2)
        q, k, v = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).reshape(rows, length, width))
        return x + self.contract(F.gelu(self.expand(self.before_mlp(x))))


class GPT2(nn.Module):
    """tokens, targets -> mean loss in nats."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.tokens = nn.Embedding(net.vocab_size, net.width)
        self.positions = nn.Embedding(net.context, net.width)
        self.blocks = nn.ModuleList(Block(net) for _ in range(net.layers))
        self.last = nn.LayerNorm(net.width, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                is_last = name.endswith(("projection.weight", "contract.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * net.layers if is_last else 1))

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """inputs, targets: (B, T) int64."""
        x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.last(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class BareLoop:
    """A model in training."""

    def __init__(self, net: Net, tokens: np.ndarray, *, seed: int) -> None:
        torch.manual_seed(seed)
        self.net, self.tokens, self.step = net, torch.from_numpy(tokens.astype(np.int64)), 0
        self.model = GPT2(net).train()
        matrices = [weight for weight in self.model.parameters() if weight.dim() == 2]
        gains = [weight for weight in self.model.parameters() if weight.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=net.rate, betas=(0.9, 0.99), fused=True)

    def rate(self) -> float:
        """The learning rate of the next step."""
        net = self.net
        if self.step < net.warmup:
            return net.rate * (self.step + 1) / (net.warmup + 1)
        share = min(1.0, (self.step - net.warmup) / (net.steps - net.warmup))
        return net.last_rate + 0.5 * (1 + math.cos(math.pi * share)) * (net.rate - net.last_rate)

    def run(self, steps: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
        """Train for `steps` more steps; return the seconds of each."""
        seconds = []
        for _ in range(steps):
            started = clock()
            starts = torch.randint(len(self.tokens) - self.net.context, (self.net.batch,))
            rows = torch.stack([self.tokens[start : start + self.net.context + 1] for start in starts.tolist()])
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            loss = self.model(rows[:, :-1], rows[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            loss.item()
            self.step += 1
            seconds.append(clock() - started)
        return seconds
