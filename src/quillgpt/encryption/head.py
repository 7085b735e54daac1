"""One attention head of a model, in the clear: what goes in, which maps and which kernel, what comes out."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quillgpt.config import ModelConfig
from quillgpt.encryption.layout import Numbers
from quillgpt.errors import ConfigError
from quillgpt.model.attention.gaussian_poly import PREFIX, power_of
from quillgpt.model.gpt import GPT
from quillgpt.model.rotary import Rotation
from quillgpt.model.self_attention import SelfAttention

IDENTITY = "pointwise-identity"
CHANNELS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A map of each position's channels: weight[t] x[t] + bias[t], with the position's rotation in it."""

    weight: Numbers
    """(T, D, C)"""
    bias: Numbers
    """(T, D)"""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A polynomial weight of a pair, (constant + scale_t * pair)^power, the pair being q k or |q - k|^2."""

    is_distance: bool
    scale: Numbers
    """of the query's position, (T,)"""
    constant: float
    power: int


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head with its activations for one text."""

    kernel: Kernel
    stream: Numbers
    """the normalised residual stream that the layer's attention reads, (T, C)"""
    query: Numbers
    """(T, D), as are key and value; normalised and rotated where the model does so"""
    key: Numbers
    value: Numbers
    maps: tuple[Linear, ...]
    """from the stream to query, key and value; none where `qk_norm` stands between"""
    output: Numbers
    """(T, D), by the model's own code"""


def is_polynomial(attention: str) -> bool:
    """Whether an entry of the attention menu needs additions and multiplications only."""
    return attention == IDENTITY or attention.startswith(PREFIX)


def polynomial_kernel(config: ModelConfig, positions: int) -> Kernel:
    """The model's kernel; a `ConfigError` names an attention that is no polynomial, and the remedy."""
    root = math.sqrt(config.n_embd // config.n_head)
    if config.attention.startswith(PREFIX):
        power = power_of(config.attention)
        scale = np.full(positions, -1 / (2 * root * power))
        return Kernel(is_distance=True, scale=scale, constant=1.0, power=power)
    if config.attention == IDENTITY:
        length = np.arange(1, positions + 1.0)
        scale = 1 / (root * length**config.pointwise_length_power)
        return Kernel(is_distance=False, scale=scale, constant=0.0, power=1)
    raise ConfigError(
        f"attention = {config.attention} is not a polynomial, and encrypted numbers can only be added and multiplied; "
        f"train a model with {PREFIX}N or {IDENTITY} (recipe `polynomial`), or list this one's parts with --survey"
    )


@torch.no_grad()
def read_head(model: GPT, tokens: Tensor, layer: int, head: int) -> Head:
    """The head's part of a forward pass over tokens (T,), its arithmetic in float64. Layer and head count from 0."""
    positions = len(tokens)
    kernel = polynomial_kernel(model.config, positions)
    block = model.get_submodule(f"blocks.{layer}.attention")
    assert isinstance(block, SelfAttention)
    stream, rotation, *_ = module_inputs(model, [block], tokens)[0]
    attention = copy.deepcopy(block).double()
    if rotation is not None:
        rotation = (rotation[0].double(), rotation[1].double())
    stream = stream.double()
    query, key, value = (part[0, head].numpy() for part in attention.queries_keys_values(stream, rotation))
    return Head(
        kernel=kernel,
        stream=stream[0].numpy(),
        query=query,
        key=key,
        value=value,
        maps=() if attention.has_qk_norm else _maps(attention, rotation, stream.shape, head),
        output=_mixed(attention, stream, rotation)[:, head].numpy(),
    )


def module_inputs(model: GPT, modules: Sequence[nn.Module], tokens: Tensor) -> list[tuple[Any, ...]]:
    """What each of the modules is given in a forward pass over tokens (T,), in their order; a batch of one."""
    found: list[tuple[Any, ...]] = [()] * len(modules)

    def keep(place: int, _: nn.Module, given: tuple[Any, ...]) -> None:
        found[place] = given

    hooks = [module.register_forward_pre_hook(partial(keep, place)) for place, module in enumerate(modules)]
    try:
        model.hidden(tokens[None])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _maps(attention: SelfAttention, rotation: Rotation | None, shape: torch.Size, head: int) -> tuple[Linear, ...]:
    """The affine maps from stream to query, key and value, read off by what they make of zero and of each channel."""
    _, positions, width = shape

    def answers(x: Tensor) -> list[Tensor]:
        """x: (n, C), one vector for all positions each. Returns (n, T, D) for query, key and value."""
        spread = x[:, None].expand(-1, positions, -1)
        return [part[:, head] for part in attention.queries_keys_values(spread, rotation)]

    biases = [part[0] for part in answers(torch.zeros(1, width, dtype=torch.float64))]
    channels = torch.eye(width, dtype=torch.float64).split(CHANNELS_AT_ONCE)
    columns = zip(*(answers(some) for some in channels), strict=True)
    return tuple(
        Linear(weight=(torch.cat(column) - bias).permute(1, 2, 0).numpy(), bias=bias.numpy())
        for column, bias in zip(columns, biases, strict=True)
    )


def _mixed(attention: SelfAttention, stream: Tensor, rotation: Rotation | None) -> Tensor:
    """What the heads hand to the output projection, (T, H, D), taken from the model's own forward pass."""
    found: list[Tensor] = []

    def take(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0])

    hook = attention.projection.register_forward_pre_hook(take)
    attention(stream, rotation, None)
    hook.remove()
    return found[0][0].unflatten(-1, (attention.n_head, -1))
