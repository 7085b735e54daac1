"""The menu of residual streams: what a block is given of the stream, and of the embedded tokens it began with.

To add one: write a module whose forward takes the stream and the embedded tokens, both (B, T, C), and the number of the
block, and returns the block's input (B, T, C); give it a line in `RESIDUALS`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from quillgpt.config import ModelConfig


class PlainResidual(nn.Module):
    """The stream as it is [He 2016]."""

    def forward(self, x: Tensor, first: Tensor, layer: int) -> Tensor:
        """x, first: (B, T, C). Returns x."""
        return x


class MixedResidual(nn.Module):
    """A learned share of the stream plus a learned share of the embedded tokens, two numbers a block [Jordan 2024b].

    They begin at 1 and 0, as a plain stream.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stream_share = nn.Parameter(torch.empty(config.n_layer))
        self.first_share = nn.Parameter(torch.empty(config.n_layer))

    def forward(self, x: Tensor, first: Tensor, layer: int) -> Tensor:
        """x, first: (B, T, C). Returns (B, T, C)."""
        return self.stream_share[layer] * x + self.first_share[layer] * first


RESIDUALS: Mapping[str, Callable[[ModelConfig], nn.Module]] = {
    "plain": lambda config: PlainResidual(),
    "mixed": MixedResidual,
}
