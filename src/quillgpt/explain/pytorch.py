"""gpt2.py as plain PyTorch, modules and an ordinary loop: `python pytorch.py FILE.txt`.

The weights have the same names and the same values. `nn.Module` finds them for the optimizer, `F` has the formulas, and
`scaled_dot_product_attention` is `attention_weights` and the product that follows it in one kernel. Text, batches,
learning rate and sampling are those of gpt2.py.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.explain.gpt2 import Config, batch, decode, encode, learn_merges, learning_rate, sample


class Attention(nn.Module):
    """Multi-head self-attention over earlier tokens [Vaswani 2017, 3.2]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.projection = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        parts = self.qkv(x).chunk(3, dim=-1)  # three of (B, T, C)
        query, key, value = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in parts)  # (B, H, T, D)
        heads = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, H, T, D)
        return self.projection(heads.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Four times as many channels, GELU, and back, for each token separately."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.expand = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.project = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.project(F.gelu(self.expand(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then MLP; each reads the normalized stream and adds to the stream itself."""

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
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.n_layer)))
        self.final_norm = nn.LayerNorm(config.n_embd)
        self.initialize()

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> logits (B, T, V)."""
        x = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]  # (B, T, C) + (T, C)
        x = self.final_norm(self.blocks(x))
        return F.linear(x, self.token_embedding.weight)  # one matrix reads and writes tokens

    @torch.no_grad()
    def initialize(self) -> None:
        """GPT-2's initial weights: matrices N(0, 0.02), smaller where they add to the stream; biases 0."""
        for name, weight in self.named_parameters():
            if weight.ndim >= 2:
                is_added = name.endswith(("attention.projection.weight", "mlp.project.weight"))
                weight.normal_(std=0.02 / math.sqrt(2 * len(self.blocks)) if is_added else 0.02)
            elif name.endswith("bias"):
                weight.zero_()


def train(model: GPT, tokens: Tensor, config: Config) -> Iterator[float]:
    """Train the model on tokens (N); yields the loss of each step, in nats per token."""
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps)
    for step in range(config.steps):
        inputs, targets = batch(tokens, config)  # each (B, T)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())  # (B * T, V) and (B * T)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.step()
        yield loss.item()


if __name__ == "__main__":
    config, text = Config(), Path(sys.argv[1]).read_text(encoding="utf-8")
    merges = learn_merges(text[:50_000], config.vocab_size - 256)
    tokens, model = torch.tensor(encode(text, merges)), GPT(config)
    for step, loss in enumerate(train(model, tokens, config)):
        if step % 50 == 0:
            print(f"step {step:4}  loss {loss:.3f}")
    print(decode(list(sample(tokens[:64].tolist(), 200, model.state_dict(), config)), merges))
