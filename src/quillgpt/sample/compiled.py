"""A model whose step of one token of one sequence is compiled whole: one call in place of some five hundred.

Reading a prompt and steps of several sequences have more to compute for each call, and stay as they are. The number of
tokens in the cache is left open, so that it is not compiled again for each length.
"""

from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache
from quillgpt.sample.weights.plain import OneRow


class CompiledGPT(GPT):
    """The same model, all of it shared; its first step compiles."""

    def __init__(self, model: GPT) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(model))
        # what is compiled is kept with a function's code: with code of its own, a model cannot be given another's, and
        # need not be compared, weight by weight, with what it was when it was compiled
        own = FunctionType(_step.__code__.replace(), globals())
        unchecked: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_inbuilt_nn_modules_unsafe}
        self._step = torch.compile(own, dynamic=True, options=unchecked)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The residual stream after the last block, normalised. tokens: (B, T) int64. Returns (B, T, C)."""
        if cache is None or cache.length < 2 or tokens.numel() > 1:  # 0 and 1 would be compiled for themselves
            return super().hidden(tokens, cache, dtype)
        with OneRow():
            return self._step(self, tokens, cache)


def _step(model: GPT, tokens: Tensor, cache: KVCache) -> Tensor:
    return GPT.hidden(model, tokens, cache)
