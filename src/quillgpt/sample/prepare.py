"""A model made ready to generate: a copy that shares what it can, with weights in another form, compiled if asked."""

import copy

import torch
from torch import nn

from quillgpt.errors import ConfigError, pick
from quillgpt.hardware import detect
from quillgpt.model.gpt import GPT
from quillgpt.sample.compiled import CompiledBlock
from quillgpt.sample.weights import WEIGHTS


def prepared(model: GPT, *, dtype: torch.dtype = torch.float32, quantize: str = "none", compile: bool = False) -> GPT:
    """A model for generating only, that writes as `model` does, up to the precision of `dtype` and `quantize`.

    The model itself stays as it is; weights that need no other form are shared with it. `quantize` is an entry of
    `WEIGHTS`; with int8 and int4, which are for the CPU, `dtype` is that of everything but the products.

    For example:
        model, tokenizer = quillgpt.load_model("runs/python")
        fast = quillgpt.prepared(model, dtype=torch.bfloat16)
        print(quillgpt.generate(fast, tokenizer, "def ")[0])
    """
    new_form = pick(WEIGHTS, quantize, "quantize")
    device = next(model.parameters()).device
    if quantize != "none" and device.type != "cpu":
        raise ConfigError(f"quantize = {quantize} works on the CPU only, the device is {device.type}; add --device cpu")
    if compile:
        check_compile(quantize, device.type)
    ready = _converted(model, dtype)
    if quantize != "none" or dtype != torch.float32:
        _swap_linears(model, ready, new_form, is_quantised=quantize != "none")
    if compile:
        ready.blocks = nn.ModuleList(CompiledBlock(block) for block in ready.blocks)
    return ready.eval()


def check_compile(quantize: str, device: str) -> None:
    """Refuse to compile what cannot be."""
    if quantize == "int8":
        raise ConfigError("compile = True: int8 is one operator already, which torch cannot compile; leave one out")
    if device == "cpu" and not detect().compiler:
        raise ConfigError("compile = True needs a C++ compiler, which is not here; install g++, or leave out --compile")


def _converted(model: GPT, dtype: torch.dtype) -> GPT:
    """A copy of the modules; the parameters are shared, or converted where they have another dtype."""
    new = {id(old): nn.Parameter(old.detach().to(dtype), requires_grad=False) for old in model.parameters()}
    return copy.deepcopy(model, memo=dict(new))


def _swap_linears(model: GPT, ready: GPT, new_form, *, is_quantised: bool) -> None:
    """Replace the linear layers of the copy; what is quantised is so from the digits of the original."""
    originals = dict(model.named_modules())
    for name, module in list(ready.named_modules()):
        if isinstance(module, nn.Linear):
            ready.set_submodule(name, new_form(originals[name] if is_quantised else module))
    if ready.head is None:  # tied: the table is still where tokens are looked up
        table = model if is_quantised else ready
        head = nn.Linear(1, 1, bias=False, device="meta")
        head.weight = table.token_embedding.weight
        ready.head = new_form(head)
