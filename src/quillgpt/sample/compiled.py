"""A model whose step of one token of one sequence is compiled: one call in place of some five hundred.

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
from quillgpt.sample.weights.plain import WRITTEN_OUT, OneRow

KEPT_APART = {"realize_opcount_threshold": 1, "realize_reads_threshold": 1, "realize_acc_reads_threshold": 1}
"""For products that are written out: what one reads is computed once and kept, not again for each of its outputs.

In bf16 10.7 ms a token, not 14.3. Where products are calls, it only keeps apart what is faster in one loop.
"""


class CompiledGPT(GPT):
    """The same model, all of it shared; its first step compiles."""

    def __init__(self, model: GPT) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(model))
        self._step = _compiled_step(model)

    def _apply(self, *arguments: Any, **named: Any) -> "CompiledGPT":  # what `to`, `bfloat16` and their like do
        """Other weights are another step: nothing would notice that those it was compiled for are gone."""
        self._step = _compiled_step(self)
        return super()._apply(*arguments, **named)

    def last_logits(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, V) of the token after the last of `tokens` (B, T), which follow those in the cache."""
        if cache is None or cache.length < 2 or tokens.numel() != 1:  # 0 and 1 would be compiled for themselves
            return super().last_logits(tokens, cache)
        with OneRow():  # a token that is a piece of a larger tensor would be compiled for itself too
            return self._step(self, tokens.clone(memory_format=torch.contiguous_format), cache)


def _compiled_step(model: GPT) -> Callable[..., Tensor]:
    """The step, compiled when it is first called.

    What is compiled is kept with a function's code: with code of its own, a model cannot be given another's, and need
    not be compared, module by module, with what it was when it was compiled.
    """
    own = FunctionType(_step.__code__.replace(), globals())
    is_written_out = any(isinstance(module, WRITTEN_OUT) for module in model.modules())
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    return torch.compile(own, dynamic=True, options=options | (KEPT_APART if is_written_out else {}))


def _step(model: GPT, tokens: Tensor, cache: KVCache) -> Tensor:
    return GPT.last_logits(model, tokens, cache)
