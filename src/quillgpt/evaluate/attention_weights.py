"""The attention weights of a prompt, for looking at: how much each position takes from which earlier one."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.errors import require
from quillgpt.evaluate.held_out_loss import evaluation_mode
from quillgpt.model.gpt import GPT
from quillgpt.model.self_attention import SelfAttention


@torch.no_grad()
def attention_weights(model: GPT, tokens: Tensor, layer: int) -> Tensor:
    """The weights of every head of a layer, (H, T, T): a row for each query, 0 for the positions behind it.

    tokens: (T,). A fused kernel never holds these numbers, so they are computed again from the queries and keys: the
    layer's own attention mixes unit vectors in the place of the values, and what comes out are the weights. So it is
    for every attention of the menu; those that do not divide by their sum have rows that do not add up to 1.
    """
    modules = [module for module in model.modules() if isinstance(module, SelfAttention)]
    require("layer", layer, 0 <= layer < len(modules), f"0 to {len(modules) - 1}")
    found: list[Tensor] = []

    def look(module: SelfAttention, arguments: tuple[Any, ...]) -> None:
        x, rotation, *_ = arguments
        query, key, _ = module.queries_keys_values(x, rotation)
        found.append(_mixed_unit_vectors(module, query, key))

    hook = modules[layer].register_forward_pre_hook(look)
    try:
        with evaluation_mode(model):
            model.hidden(tokens[None])
    finally:
        hook.remove()
    return found[0]


def _mixed_unit_vectors(module: SelfAttention, query: Tensor, key: Tensor) -> Tensor:
    """The attention's output for values of which the first has a 1 in the first place, and so on; (H, T, T)."""
    length, head_size = query.shape[2:]
    unit_vectors = torch.eye(length, dtype=query.dtype, device=query.device)
    parts = []
    for columns in F.pad(unit_vectors, (0, -length % head_size)).split(head_size, dim=1):  # each (T, D), as values are
        parts.append(module.attend(query, key, columns.expand_as(key).contiguous(), dropout=0.0))
    return torch.cat(parts, dim=-1)[0, :, :, :length]
