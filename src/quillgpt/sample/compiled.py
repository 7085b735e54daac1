"""A block whose step of one token is compiled: what is before attention, and what is after it.

Attention itself is not, because the keys grow by one with every token; so nothing has to be compiled again, and all
blocks share what was compiled for the first.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from quillgpt.model.gpt import Block
from quillgpt.model.kv_cache import KVCache
from quillgpt.model.rotary import Rotation
from quillgpt.sample.weights.plain import OneRow


class CompiledBlock(nn.Module):
    """The block, compiled for one token of each sequence."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self._before, self._after = _compiled()

    def forward(
        self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, extra_value: Tensor | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if cache is None or x.shape[1] > 1:
            return self.block(x, rotation, cache, extra_value)
        if len(x) > 1:
            return self._step(x, rotation, cache, extra_value)
        with OneRow():
            return self._step(x, rotation, cache, extra_value)

    def _step(self, x: Tensor, rotation: Rotation | None, cache: KVCache, extra_value: Tensor | None) -> Tensor:
        query, key, value = self._before(self.block, x, rotation, extra_value)
        return self._after(self.block, x, self.block.attention.mix(query, key, value, cache))


def _before_attention(
    block: Block, x: Tensor, rotation: Rotation | None, extra_value: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return block.attention.queries_keys_values(block.norm_1(x), rotation, extra_value)


def _after_attention(block: Block, x: Tensor, mixed: Tensor) -> Tensor:
    x = x + block.attention.projection(mixed.transpose(1, 2).flatten(start_dim=2))
    return x + block.mlp(block.norm_2(x))


@functools.cache
def _compiled() -> tuple[Callable[..., tuple[Tensor, Tensor, Tensor]], Callable[..., Tensor]]:
    """One of each for all blocks; made when first wanted, because torch's compiler takes seconds to import."""
    return torch.compile(_before_attention, dynamic=False), torch.compile(_after_attention, dynamic=False)
