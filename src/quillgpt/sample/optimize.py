"""A model made faster for generation: weights in another form, and the step of one token compiled."""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from quillgpt.errors import ConfigError, pick
from quillgpt.model.gpt import GPT
from quillgpt.model.kv_cache import KVCache
from quillgpt.runtime import detect
from quillgpt.sample.torch_internals import WithoutOneDNN, compile_clone
from quillgpt.sample.weights import FORMS, WEIGHTS
from quillgpt.sample.weights.plain import PlainLinear

BUFFERED = {"realize_opcount_threshold": 1, "realize_reads_threshold": 1, "realize_acc_reads_threshold": 1}
"""inductor options for the products of `matvec`: inputs are computed once, not again for each output (bf16: 10.7 ms a
token rather than 14.3); products that are library calls are faster without"""


def optimize_for_inference(
    model: GPT, *, dtype: torch.dtype = torch.float32, quantize: str = "none", compile: bool = False
) -> GPT:
    """A copy of the model that generates faster, with the same text up to rounding; docs/sampling.md has the cost.

    dtype: the compute dtype. quantize: an entry of `WEIGHTS`; int8 and int4 on a CPU only. The given model is not
    changed, and weights that need no other form are shared with it.

    For example:
        model, tokenizer = quillgpt.load_model("runs/python")
        fast = quillgpt.optimize_for_inference(model, quantize="int8")
        print(quillgpt.generate(fast, tokenizer, "def main", max_new_tokens=50)[0])
    """
    check_request(quantize, compile, next(model.parameters()).device.type)
    if isinstance(model, CompiledGPT) or any(isinstance(module, FORMS) for module in model.modules()):
        raise ConfigError("this model is already optimized; optimize the original model")
    fast = _converted(model, dtype)
    _replace_linears(fast, model if quantize != "none" else fast, WEIGHTS[quantize])
    fast.eval()
    return CompiledGPT(fast) if compile else fast


def check_request(quantize: str, compile: bool, device: str) -> None:
    """Refuse an unknown form, or one that this device or machine does not support, before a model is loaded."""
    pick(WEIGHTS, quantize, "quantize")
    if quantize != "none" and device != "cpu":
        raise ConfigError(f"invalid quantize: {quantize} (must be none on {device}); use --device cpu")
    if compile and quantize == "int8":
        raise ConfigError("--compile does not support int8 weights; leave out one of the two")
    if compile and device == "mps":
        raise ConfigError("--compile is not reliable on MPS; leave it out")
    if compile and device == "cpu" and not detect().compiler:
        raise ConfigError("--compile needs a C++ compiler; install g++, or leave it out")


def _converted(model: GPT, dtype: torch.dtype) -> GPT:
    """A copy of the modules; parameters are copied only if their dtype changes."""
    new = {id(old): nn.Parameter(old.detach().to(dtype), requires_grad=False) for old in model.parameters()}
    return copy.deepcopy(model, memo=dict(new))


def _replace_linears(fast: GPT, original: GPT, new_form: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace the linear layers of the copy, made from the weights of `original`; the head too, tied or not."""
    for name, module in list(original.named_modules()):
        if type(module) is nn.Linear:
            fast.set_submodule(name, new_form(module))
    if original.head is None:  # tied: the embedding table itself is not changed
        tied = nn.Linear(1, 1, bias=False, device="meta")
        tied.weight = original.token_embedding.weight
        head = new_form(tied)
        if head is not tied:
            fast.head = cast(nn.Linear, head)  # it is only called


class CompiledGPT(GPT):
    """A model that shares all parameters with the given one and compiles the step of one token of one sequence.

    Prefill and batches have more work per call and stay eager. The cache length is dynamic, so it compiles once.
    """

    def __init__(self, model: GPT) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(model))
        self._step = self._compiled_step()

    def _apply(self, *arguments: Any, **named: Any) -> "CompiledGPT":  # called by `to`, `bfloat16` and so on
        """Compile again for the new weights; modules are not guarded, so the old step would keep the old ones."""
        self._step = self._compiled_step()
        return super()._apply(*arguments, **named)

    def _compiled_step(self) -> Callable[..., Tensor]:
        uses_matvec = any(isinstance(module, PlainLinear) for module in self.modules())
        return compile_clone(_step, BUFFERED if uses_matvec else {})

    def last_logits(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, V) of the token after the last of `tokens` (B, T), which follow those in the cache."""
        if cache is None or cache.length < 2 or tokens.numel() != 1:  # lengths 0 and 1 would be specialised
            return super().last_logits(tokens, cache)
        with WithoutOneDNN():  # a token that is a view of a larger tensor would be specialised too
            return self._step(self, tokens.clone(memory_format=torch.contiguous_format), cache)


def _step(model: GPT, tokens: Tensor, cache: KVCache) -> Tensor:
    return GPT.last_logits(model, tokens, cache)
