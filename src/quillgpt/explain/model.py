"""The model of gpt2.py as plain PyTorch modules: the same weights under the same names, the same numbers.

A module keeps its weights and finds them for the optimizer, `F` has the formulas, and `scaled_dot_product_attention`
does in one kernel what `attention_weights` and the product after it do in six.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.explain.gpt2 import Config


class Attention(nn.Module):
    """Each token gathers from earlier ones, in H ways at once [Vaswani 2017, 3.2]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.projection = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        parts = self.qkv(x).chunk(3, dim=-1)  # three of (B, T, C)
        query, key, value = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in parts)  # (B, H, T, D)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, H, T, D)
        return self.projection(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Four times as many channels, GELU, and back; each token alone."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.expand = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.project = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.project(F.gelu(self.expand(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then MLP; each reads the normalised stream and adds to the stream itself."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config)
        self.norm_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    """From tokens to a score for every token that could be next."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.context_length, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd)
        self.initialize()

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> logits (B, T, V)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)  # (B, T, C) + (T, C)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.final_norm(x), self.token_embedding.weight)  # one matrix reads and writes tokens

    @torch.no_grad()
    def initialize(self) -> None:
        """GPT-2's beginning instead of torch's own: matrices N(0, 0.02), smaller where they add to the stream."""
        for name, weight in self.named_parameters():
            if weight.ndim >= 2:
                is_added = name.endswith(("attention.projection.weight", "mlp.project.weight"))
                weight.normal_(std=0.02 / math.sqrt(2 * len(self.blocks)) if is_added else 0.02)
            elif name.endswith("bias"):
                weight.zero_()
