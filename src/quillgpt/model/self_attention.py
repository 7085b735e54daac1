"""Self-attention: the weights around an entry of the attention menu, and where positions and the cache come in."""

import torch
from torch import Tensor, nn

from quillgpt.config import ModelConfig
from quillgpt.model.attention import attention_of
from quillgpt.model.kv_cache import KVCache
from quillgpt.model.norm import rms_norm
from quillgpt.model.rotary import Rotation, rotate


class SelfAttention(nn.Module):
    """Every position gathers from the ones before it, in H independent heads [Vaswani 2017, 3.2]."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.has_qk_norm = config.qk_norm
        self.dropout = config.dropout
        self.attend = attention_of(config)
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.projection = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(
        self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, extra_value: Tensor | None = None
    ) -> Tensor:
        """x: (B, T, C), the last T positions; those before them are in the cache. Returns (B, T, C).

        `extra_value` (B, T, C) is added to the values, head by head.
        """
        query, key, value = self.queries_keys_values(x, rotation, extra_value)
        mixed = self.mix(query, key, value, cache)
        return self.projection(mixed.transpose(1, 2).flatten(start_dim=2))  # (B, T, C)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, cache: KVCache | None) -> Tensor:
        """Attention over these and what is in the cache, in the wider of their dtypes; all are (B, H, T, D).

        What is read first sees only itself, so that a prompt is mixed as without a cache, by the faster kernel.
        """
        dtype = query.dtype
        if cache is not None:
            held = cache.append(self.layer, key, value)  # each (B, H, S, D)
            if cache.length:
                key, value = held
                wider = torch.promote_types(dtype, key.dtype)
                query, key, value = query.to(wider), key.to(wider), value.to(wider)  # copies a narrower cache
        return self.attend(query, key, value, dropout=self.dropout if self.training else 0.0).to(dtype)

    def queries_keys_values(
        self, x: Tensor, rotation: Rotation | None, extra_value: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the heads compare and mix, each (B, H, T, D), normalised and rotated as set. x: (B, T, C)."""
        heads = self.qkv(x).view(*x.shape[:2], 3, self.n_head, -1).permute(0, 2, 3, 1, 4)  # (B, 3, H, T, D)
        if self.has_qk_norm or rotation is not None:
            queries_and_keys, value = heads.split((2, 1), dim=1)  # derived in one pass, as two slices are not
            if self.has_qk_norm:
                queries_and_keys = rms_norm(queries_and_keys)
            if rotation is not None:
                queries_and_keys = rotate(queries_and_keys, rotation)
            query, key = queries_and_keys.unbind(1)
            value = value.squeeze(1)
        else:
            query, key, value = heads.unbind(1)
        if extra_value is not None:
            value = value + self._heads(extra_value.to(value.dtype))
        return query, key, value

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # (B, T, C) to (B, H, T, D)
