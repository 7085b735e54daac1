"""Keys and values of the tokens a model has already read, so that generating the next one reads only itself."""

import torch
from torch import Tensor

from quillgpt.config import ModelConfig


class KVCache:
    """Room for one batch of sequences of equal length, allocated once and owned by the caller.

    Pass it to each forward of the same model; the first call reads the prompt (prefill), later ones the new tokens
    (decode). Use it under `torch.inference_mode()`. `length` is the number of tokens held for each sequence, `room` how
    many fit: context_length, or fewer where it is known that fewer will come.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        room: int | None = None,
    ) -> None:
        self.room = config.context_length if room is None else min(room, config.context_length)
        head_size = config.n_embd // config.n_head
        # one place more than is used: what is held is then never all of the memory, for which a compiler starts anew
        shape = (batch_size, config.n_head, self.room + 1, head_size)

        def room_of_a_layer() -> Tensor:  # written once, so that all memory is taken here and not page by page later
            return torch.empty(shape, device=device, dtype=dtype).zero_()

        self.keys = [room_of_a_layer() for _ in range(config.n_layer)]
        self.values = [room_of_a_layer() for _ in range(config.n_layer)]
        self.batch_size = batch_size
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's T new keys and values, each (B, H, T, D); return those of all S = length + T positions.

        What comes back is the cache's own memory in its own dtype, not a copy. `length` does not move.
        """
        if key.shape[0] != self.batch_size:
            raise ValueError(f"got {key.shape[0]} sequences; the cache was made for {self.batch_size}")
        end = self.length + key.shape[2]
        if end > self.room:
            got = f"{end} tokens ({self.length} in the cache, {key.shape[2]} new)"
            raise ValueError(f"got {got}; the cache has room for {self.room}")
        keys, values = self.keys[layer], self.values[layer]
        keys.narrow(2, self.length, end - self.length).copy_(key)  # a slice, written so that Python has less to do
        values.narrow(2, self.length, end - self.length).copy_(value)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def advance(self, count: int) -> None:
        """Count the tokens that every layer has now appended; the model does so at the end of each forward."""
        self.length += count

    def take(self, other: "KVCache", rows: Tensor | slice = slice(None)) -> None:
        """Hold what these sequences of another cache hold; its only one, if it has one, is held for all."""
        self.length = other.length
        for mine, theirs in zip(self.keys + self.values, other.keys + other.values, strict=True):
            mine[:, :, : self.length] = theirs[rows, :, : self.length]

    def clear(self) -> None:
        """Forget all tokens and keep the room."""
        self.length = 0
