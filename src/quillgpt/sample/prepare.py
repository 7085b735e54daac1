"""A model made ready to generate: a copy that shares what it can, its weights in another form, compiled if asked."""

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from quillgpt.errors import ConfigError, pick
from quillgpt.hardware import detect
from quillgpt.model.gpt import GPT
from quillgpt.sample.compiled import CompiledGPT
from quillgpt.sample.weights import FORMS, WEIGHTS


def prepared(model: GPT, *, dtype: torch.dtype = torch.float32, quantize: str = "none", compile: bool = False) -> GPT:
    """A copy of the model that generates faster and writes the same up to its precision; docs/sampling.md has the cost.

    `dtype` is what is computed in; `quantize` is an entry of `WEIGHTS`: none, int8 or int4, the last two on a CPU only.
    The model stays as it is, and weights that need no other form are shared with it. A mistake is a `ConfigError`.

    For example:
        model, tokenizer = quillgpt.load_model("runs/python")
        fast = quillgpt.prepared(model, quantize="int8")
        print(quillgpt.generate(fast, tokenizer, "def main", max_new_tokens=50)[0])
    """
    check_request(quantize, compile, next(model.parameters()).device.type)
    if isinstance(model, CompiledGPT) or any(isinstance(module, FORMS) for module in model.modules()):
        raise ConfigError("this model is prepared already; prepare the one that it was made of")
    ready = _converted(model, dtype)
    _swap_linears(ready, model if quantize != "none" else ready, WEIGHTS[quantize])
    ready.eval()
    return CompiledGPT(ready) if compile else ready


def check_request(quantize: str, compile: bool, device: str) -> None:
    """Refuse what does not exist or cannot be had on this machine, before a model is loaded. device: cpu, cuda, mps."""
    pick(WEIGHTS, quantize, "quantize")
    if quantize != "none" and device != "cpu":
        raise ConfigError(f"quantize = {quantize} works on the CPU only, the device is {device}; use --device cpu")
    if compile and quantize == "int8":
        raise ConfigError("compile: the product of int8 weights is not for torch's compiler; leave out one of the two")
    if compile and device == "mps":
        raise ConfigError("compile: not dependable on MPS; leave it out")
    if compile and device == "cpu" and not detect().compiler:
        raise ConfigError("compile: there is no C++ compiler here; install g++, or leave it out")


def _converted(model: GPT, dtype: torch.dtype) -> GPT:
    """A copy of the modules, but of the parameters only where they have another dtype."""
    new = {id(old): nn.Parameter(old.detach().to(dtype), requires_grad=False) for old in model.parameters()}
    return copy.deepcopy(model, memo=dict(new))


def _swap_linears(ready: GPT, digits: GPT, new_form: Callable[[nn.Linear], nn.Module]) -> None:
    """Give the copy linear layers of another form, made from the weights of `digits`; its head too, tied or not."""
    for name, module in list(digits.named_modules()):
        if type(module) is nn.Linear:
            ready.set_submodule(name, new_form(module))
    if digits.head is None:  # tied: the table stays as it is where tokens are looked up
        tied = nn.Linear(1, 1, bias=False, device="meta")
        tied.weight = digits.token_embedding.weight
        head = new_form(tied)
        if head is not tied:
            ready.head = cast(nn.Linear, head)  # it only has to be called
