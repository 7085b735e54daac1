"""Which parts of a model are polynomials, which polynomials can replace the others, and the depth of each part.

A replacement errs by at most ACCURACY on the interval that its argument has on one text: of the value for 1/√x and 1/x,
of the largest value for the others. Depths are levels of ciphertext; a constant factor costs none.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.polynomial import Chebyshev
from torch import Tensor
from torch.nn import functional as F

from circuit import Numbers, polynomial_kernel
from quillgpt.errors import NonFiniteError, require
from quillgpt.model.attention.pointwise import POINTWISE
from quillgpt.model.attention.power import EPSILON, POWER
from quillgpt.model.gpt import GPT
from quillgpt.model.norm import EPSILON as NORM_EPSILON

ACCURACY = 2.0**-8  # the precision of bf16, in which models run
MAX_DEGREE = 2047
Inputs = dict[str, tuple[Any, ...]]
Function = Callable[[Tensor], Tensor]


class Approximation(NamedTuple):
    function: str
    low: float
    high: float
    degree: int  # MAX_DEGREE + 1 if none is enough

    @property
    def depth(self) -> int:
        """ceil(log2(degree + 1)), the least in which a polynomial can be evaluated [Bossuat 2021]."""
        return self.degree.bit_length()


class Part(NamedTuple):
    name: str
    depth: int
    approximations: tuple[Approximation, ...] = ()  # none if the part is a polynomial


def module_inputs(model: GPT, tokens: Tensor) -> Inputs:
    """The arguments of each module for tokens (T,), by name; `blocks.I.heads`: query, key, value, each (1, H, T, D)."""
    found: Inputs = {}
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _, arguments, name=name: found.setdefault(name, arguments) and None)
    model.hidden(tokens[None])
    if not found["final_norm"][0].isfinite().all():
        raise NonFiniteError("the model's activations are not finite; its weights may be damaged")
    for layer, block in enumerate(model.blocks):
        stream, rotation, _, *extra_value = found[f"blocks.{layer}.attention"]
        found[f"blocks.{layer}.heads"] = block.attention.queries_keys_values(stream, rotation, *extra_value)
    return found


def survey(model: GPT, inputs: Inputs) -> list[Part]:
    """The parts of the model from the embedded tokens to the logits, in the order of computation."""
    config, parts = model.config, []
    for layer, block in enumerate(model.blocks):
        at = f"blocks.{layer}."
        query, key, _ = inputs[at + "heads"]
        parts += [_norm(config.norm, *inputs[at + "norm_1"]), Part("queries, keys, values", 1)]
        start = len(parts) - 1
        if config.qk_norm:
            raw = block.attention.qkv(*inputs[at + "attention.qkv"])[..., : 2 * config.n_embd]
            parts.append(_norm("qk_norm", raw.unflatten(-1, (-1, query.shape[-1]))))
        if inputs[at + "attention"][1] is not None:  # folds into the matrix before it, unless qk_norm is between
            parts.append(Part(f"position: {config.position}", int(config.qk_norm)))
        if model.value_embeddings is not None:
            gate = model.value_embeddings.gate_logits(*inputs[at + "norm_1"], layer)
            if gate is not None:  # computed at the same time as queries and keys; only the values wait for it
                part = _function("value embedding's gate", "sigmoid", torch.sigmoid, gate, 2)
                parts.append(part._replace(depth=max(0, part.depth - sum(each.depth for each in parts[start:]))))
        parts += [_attention(model, query, key), Part("attention's projection", 1)]
        parts += [_norm(config.norm, *inputs[at + "norm_2"]), Part("MLP's first matrix", 1)]
        parts += [_activation(config.mlp, block.mlp, *inputs[at + "mlp"]), Part("MLP's second matrix", 1)]
    return [*parts, _norm(config.norm, *inputs["final_norm"]), Part("output head", 1)]


def _norm(name: str, x: Tensor) -> Part:
    """The mean square, 1 / its root, the product with x; weights fold into the next matrix."""
    squares = x.var(-1, correction=0) if name == "layernorm" else x.square().mean(-1)
    root = _approximation("1/√x", torch.rsqrt, squares + NORM_EPSILON)
    return Part(f"norm: {name}", 1 + root.depth + 1, (root,))


def _function(part: str, name: str, function: Function, x: Tensor, products: int = 0) -> Part:
    """A function of each number and the products around it."""
    approximation = _approximation(name, function, x, ACCURACY * function(x).abs().max().item())
    return Part(part, products + approximation.depth, (approximation,))


def _activation(name: str, mlp: Any, x: Tensor) -> Part:
    if name == "square":
        return Part("activation: square", 1)
    if name == "swiglu":
        return _function("activation: swiglu", "silu", F.silu, mlp.gate(x), 1)
    return _function(f"activation: {name}", name, mlp.activation, mlp.expand(x))


def _attention(model: GPT, query: Tensor, key: Tensor) -> Part:
    """The pair's product, scale and mask, the weight and its product with the value."""
    attention, root = model.config.attention, math.sqrt(query.shape[-1])
    name, future = f"attention: {attention}", torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).triu(1)
    if kernel := polynomial_kernel(model.config, positions=1):
        return Part(name, kernel.depth)
    x = -torch.cdist(query, key).square() / (2 * root) if "gaussian" in attention else query @ key.mT / root
    if attention == "gaussian" or attention in POINTWISE:
        return _function(name, "weight", POINTWISE.get(attention, torch.exp), x, 3)
    if attention == "power":  # a public bound replaces the largest score of a row
        x = x.masked_fill(future, 0.0)
        sums, depth, exponentials = (x / x.abs().max()).pow(POWER).sum(-1) + EPSILON, 2 + (POWER - 1).bit_length(), ()
    else:
        require("attention", attention, attention in ("softmax", "explicit", "gaussian-normalized"), "one known here")
        x = x - x.masked_fill(future, -math.inf).max()
        weights = x.exp().masked_fill(future, 0.0)
        exponentials = (_approximation("exp x", torch.exp, x, ACCURACY * weights.amax(-1).min().item()),)
        sums, depth = weights.sum(-1).clamp(min=1e-300), 1 + exponentials[0].depth + 1
    inverse = _approximation("1/x", torch.reciprocal, sums)  # computed at the same time as the sum of the values
    return Part(name, depth + max(1, inverse.depth) + 1, (*exponentials, inverse))


def _approximation(name: str, function: Function, x: Tensor, allowed: float | None = None) -> Approximation:
    low, high = x.min().item(), x.max().item()
    degree = least_degree(lambda values: function(torch.from_numpy(values)).numpy(), low, high, allowed)
    return Approximation(name, low, high, degree)


def least_degree(function: Callable[[Numbers], Numbers], low: float, high: float, allowed: float | None) -> int:
    """The least degree of a Chebyshev interpolation that errs by at most `allowed` (None: by ACCURACY of the value)."""

    def is_enough(degree: int) -> bool:
        x = (low + high) / 2 + (high - low) / 2 * np.cos(np.linspace(0, math.pi, 8 * (degree + 8)))
        error = np.abs(Chebyshev.interpolate(function, degree, domain=[low, high])(x) - function(x))
        return bool(np.all(error <= (ACCURACY * np.abs(function(x)) if allowed is None else allowed)))

    degree = 1
    while low < high and not is_enough(degree):
        degree = 2 * degree + 1
        if degree > MAX_DEGREE:
            return MAX_DEGREE + 1
    return degree // 2 + 1 + bisect_left(range(degree // 2 + 1, degree), True, key=is_enough)
