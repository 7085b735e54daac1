"""Keys and values of the tokens a model has already read, so that generating the next one reads only itself."""

import torch
from torch import Tensor

from quillgpt.config import ModelConfig


class KVCache:
    """Room for one batch of sequences of equal length, allocated once and owned by the caller.

    Pass it to each forward of the same model; the first call reads the prompt (prefill), later ones the new tokens
    (decode). Use it under `torch.inference_mode()`. `length` is the number of tokens held for each sequence.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        head_size = config.n_embd // config.n_head
        shape = (config.n_layer, batch_size, config.n_head, config.context_length, head_size)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.batch_size = batch_size
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's T new keys and values, each (B, H, T, D); return those of all S = length + T positions.

        They come back in the dtype they came in with, whatever the cache stores. `length` does not move.
        """
        if key.shape[0] != self.batch_size:
            raise ValueError(f"got {key.shape[0]} sequences; the cache was made for {self.batch_size}")
        end = self.length + key.shape[2]
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end].to(key.dtype), self.values[layer, :, :, :end].to(value.dtype)

    def advance(self, count: int) -> None:
        """Count the tokens that every layer has now appended; the model does so at the end of each forward."""
        self.length += count

    def clear(self) -> None:
        """Forget all tokens and keep the room."""
        self.length = 0
