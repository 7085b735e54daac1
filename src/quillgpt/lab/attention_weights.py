"""The attention weights of a prompt, for inspection: the weight of every earlier position for every position."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.errors import require
from quillgpt.model.gpt import GPT, SelfAttention
from quillgpt.model.precision import evaluation_mode


@torch.no_grad()
def attention_weights(model: GPT, tokens: Tensor, layer: int) -> Tensor:
    """The weights of every head of a layer, (H, T, T): a row for each query, 0 for later positions.

    tokens: (T,). A fused kernel does not return its weights, so they are computed from the queries and keys: with unit
    vectors as values, the output of the layer's attention is its weights. This works for every attention of the menu;
    the rows of unnormalized attentions do not add up to 1.
    """
    modules = [module for module in model.modules() if isinstance(module, SelfAttention)]
    require("layer", layer, 0 <= layer < len(modules), f"between 0 and {len(modules) - 1}")
    found: list[Tensor] = []

    def record_weights(module: SelfAttention, arguments: tuple[Any, ...]) -> None:
        x, rotation, *_ = arguments
        query, key, _ = module.queries_keys_values(x, rotation)
        found.append(_weights(module, query, key))

    hook = modules[layer].register_forward_pre_hook(record_weights)
    try:
        with evaluation_mode(model):
            model.hidden(tokens[None])
    finally:
        hook.remove()
    return found[0]


def _weights(module: SelfAttention, query: Tensor, key: Tensor) -> Tensor:
    """The attention's output with the unit vectors as values, (H, T, T), computed D columns at a time."""
    length, head_size = query.shape[2:]
    unit_vectors = torch.eye(length, dtype=query.dtype, device=query.device)
    parts = []
    for columns in F.pad(unit_vectors, (0, -length % head_size)).split(head_size, dim=1):  # each (T, D), as values are
        parts.append(module.attention_function(query, key, columns.expand_as(key).contiguous(), dropout=0.0))
    return torch.cat(parts, dim=-1)[0, :, :, :length]
