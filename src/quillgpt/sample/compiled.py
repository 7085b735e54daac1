"""A model whose step of one token of one sequence is compiled: two calls in place of some five hundred.

Reading a prompt and steps of several sequences have more to compute for each call, and stay as they are. The number of
tokens in the cache is left open, so that it is not compiled again for each length.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache
from quillgpt.sample.weights.plain import OneRow

KEPT_APART = {"realize_opcount_threshold": 1, "realize_reads_threshold": 1, "realize_acc_reads_threshold": 1}
"""what a product reads is computed once and kept, not again for each of its outputs: 10.7 ms a token, not 14.3"""


class CompiledGPT(GPT):
    """The same model, all of it shared; its first step compiles."""

    def __init__(self, model: GPT) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(model))
        self._step, self._head = _compiled(_step), _compiled(_head)
        self._is_step = False  # what is computed now: a step of one token of one sequence, or anything else

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The residual stream after the last block, normalised. tokens: (B, T) int64. Returns (B, T, C)."""
        self._is_step = cache is not None and cache.length > 1 and tokens.numel() == 1  # 0, 1: compiled for themselves
        if not self._is_step:
            return super().hidden(tokens, cache, dtype)
        with OneRow():
            return self._step(self, tokens, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, V): one score for each real token."""
        if not self._is_step:
            return super().logits(hidden)
        with OneRow():
            return self._head(self, hidden)


def _compiled(function: FunctionType) -> Callable[..., Tensor]:
    """The function, compiled when it is first called.

    What is compiled is kept with a function's code: with code of its own, a model cannot be given another's, and need
    not be compared, weight by weight, with what it was when it was compiled.
    """
    own = FunctionType(function.__code__.replace(), globals())
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_inbuilt_nn_modules_unsafe}
    return torch.compile(own, dynamic=True, options=options | KEPT_APART)


def _head(model: GPT, hidden: Tensor) -> Tensor:
    return GPT.logits(model, hidden)


def _step(model: GPT, tokens: Tensor, cache: KVCache) -> Tensor:
    return GPT.hidden(model, tokens, cache)
