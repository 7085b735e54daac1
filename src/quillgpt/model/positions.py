"""The menu of positions: how the model knows the order of the tokens.

To add one: write a module whose forward takes the embedded tokens (B, T, C) and the position of the first of them, and
returns the tokens (changed or not) and a rotation of queries and keys (or None); give it a line in `POSITIONS`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from quillgpt.config import ModelConfig
from quillgpt.model.rotary import RotaryPositions, Rotation


class LearnedPositions(nn.Module):
    """A learned vector for each position, added to the token's [Radford 2018, 3.1]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.context_length, config.n_embd))

    def forward(self, x: Tensor, start: int) -> tuple[Tensor, Rotation | None]:
        """x: (B, T, C), the tokens at positions start .. start + T - 1. Returns the sum, and no rotation."""
        return x + self.weight[start : start + x.shape[1]], None


POSITIONS: Mapping[str, Callable[[ModelConfig], nn.Module]] = {
    "learned": LearnedPositions,
    "rotary": RotaryPositions,
}
