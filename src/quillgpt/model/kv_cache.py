"""Keys and values of the tokens a model has already read, so that the next token is computed from itself alone."""

import torch
from torch import Tensor

from quillgpt.config import ModelConfig


class KVCache:
    """Keys and values of one batch of sequences of equal length, allocated once and owned by the caller.

    Pass it to each forward of the same model; the first call reads the prompt (prefill), later ones the new tokens
    (decode). Use it under `torch.inference_mode()`. `length` is the number of tokens held for each sequence, `capacity`
    how many fit: context_length, or fewer where it is known that fewer will come.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        capacity: int | None = None,
    ) -> None:
        self.capacity = config.context_length if capacity is None else min(capacity, config.context_length)
        self.batch_size = batch_size
        self.length = 0
        # one more than is used: a slice is then never the full tensor, for which a compiler would compile again
        shape = (batch_size, config.n_head, self.capacity + 1, config.n_embd // config.n_head)
        # `empty` and `zero_` write every page now; pages of `zeros` would be allocated one by one later
        empty = [torch.empty(shape, device=device, dtype=dtype).zero_() for _ in range(2 * config.n_layer)]
        self.keys, self.values = empty[::2], empty[1::2]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's T new keys and values, each (B, H, T, D); return those of all S = length + T positions.

        The result is a view of the cache in its own dtype, not a copy. `length` does not change.
        """
        if key.shape[0] != self.batch_size:
            raise ValueError(f"got {key.shape[0]} sequences (must be {self.batch_size}, as the cache was made for)")
        end = self.length + key.shape[2]
        if end > self.capacity:
            got = f"{end} tokens ({self.length} in the cache, {key.shape[2]} new)"
            raise ValueError(f"got {got}, more than the cache's capacity = {self.capacity}")
        keys, values = self.keys[layer], self.values[layer]
        keys.narrow(2, self.length, end - self.length).copy_(key)  # a slice, with less work in Python than indexing
        values.narrow(2, self.length, end - self.length).copy_(value)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def advance(self, count: int) -> None:
        """Count the tokens that every layer has now appended; the model does so at the end of each forward."""
        self.length += count

    def copy_from(self, other: "KVCache", rows: Tensor | slice = slice(None)) -> None:
        """Copy these sequences of another cache; a single one is copied to all."""
        self.length = other.length
        for mine, theirs in zip(self.keys + self.values, other.keys + other.values, strict=True):
            mine[:, :, : self.length] = theirs[rows, :, : self.length]

    def clear(self) -> None:
        """Forget all tokens and keep the memory."""
        self.length = 0
