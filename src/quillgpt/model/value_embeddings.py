"""Value embeddings: a second embedding of the token that goes straight into what attention mixes [Jordan 2024b]."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.config import ModelConfig

GATE_CHANNELS = 12
"""how many channels of the stream a gate looks at"""
LARGEST_GATE = 2.0
"""so that a gate begins at 1, in the middle"""


class ValueEmbeddings(nn.Module):
    """For every second block, the last among them: a table, and a gate for each head."""

    def __init__(self, config: ModelConfig, rows: int) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.layers = [layer for layer in range(config.n_layer) if (config.n_layer - 1 - layer) % 2 == 0]
        self.tables = nn.ParameterList(nn.Parameter(torch.empty(rows, config.n_embd)) for _ in self.layers)
        channels = min(GATE_CHANNELS, config.n_embd)
        self.gates = nn.ParameterList(nn.Parameter(torch.empty(config.n_head, channels)) for _ in self.layers)

    def forward(self, tokens: Tensor, x: Tensor, layer: int) -> Tensor | None:
        """What a block adds to its values, (B, T, C); None for a block without. tokens: (B, T), x: (B, T, C)."""
        logits = self.gate_logits(x, layer)
        if logits is None:
            return None
        opened = LARGEST_GATE * torch.sigmoid(logits)  # (B, T, H)
        value = F.embedding(tokens, self.tables[self.layers.index(layer)]).to(x.dtype)
        value = value.unflatten(-1, (self.n_head, -1))  # (B, T, H, D)
        return (opened[..., None] * value).flatten(start_dim=-2)

    def gate_logits(self, x: Tensor, layer: int) -> Tensor | None:
        """What the gate's sigmoid is given, (B, T, H); None for a block without. x: (B, T, C)."""
        if layer not in self.layers:
            return None
        gate = self.gates[self.layers.index(layer)]
        return F.linear(x[..., : gate.shape[1]], gate)
