"""What goes into the functions of a model that are no polynomials, measured on one text."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quillgpt.encryption.head import module_inputs
from quillgpt.errors import NonFiniteError
from quillgpt.model.gpt import GPT, Block
from quillgpt.model.self_attention import SelfAttention

Pair = tuple[Tensor, Tensor]
"""queries and keys of a layer, each (H, T, D)"""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What the parts of one layer are given, in float64."""

    norm_1: Tensor
    """the residual stream before the norm, (T, C)"""
    norm_2: Tensor
    raw_pair: Pair
    """as projected"""
    pair: Pair
    """as attention compares them"""
    mlp: dict[str, Tensor]
    """what the layers `expand` and `gate` of the feed-forward network give, (T, their width)"""
    value_gate: Tensor | None = None
    """what the gate of a value embedding is given, (T, H); None in a layer without"""


@torch.no_grad()
def measured(model: GPT, tokens: Tensor) -> tuple[list[Activations], Tensor]:
    """Run the model on tokens (T,): the activations of every layer, and the stream before the last norm, (T, C)."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    parts = [part for block in blocks for part in (block.norm_1, block.attention, block.norm_2, block.mlp)]
    *inputs, last = module_inputs(model, [*parts, model.final_norm], tokens)
    if not torch.isfinite(last[0]).all():
        raise NonFiniteError("the model's activations are not finite numbers; its weights may be damaged")
    gates = [None if model.value_embeddings is None else _gate(model, i, inputs[4 * i][0]) for i in range(len(blocks))]
    layers = [replace(_layer(block, *inputs[4 * i : 4 * i + 4]), value_gate=gates[i]) for i, block in enumerate(blocks)]
    return layers, last[0][0].double()


def _gate(model: GPT, layer: int, stream: Tensor) -> Tensor | None:
    assert model.value_embeddings is not None
    logits = model.value_embeddings.gate_logits(stream, layer)
    return None if logits is None else logits[0].double()


def _layer(block: Block, norm_1: tuple, attention: tuple, norm_2: tuple, mlp: tuple) -> Activations:
    stream, rotation, *_ = attention
    query, key, _ = block.attention.queries_keys_values(stream, rotation)
    wide = {name: layer(mlp[0])[0].double() for name, layer in block.mlp.named_children() if name in ("expand", "gate")}
    return Activations(
        norm_1=norm_1[0][0].double(),
        norm_2=norm_2[0][0].double(),
        raw_pair=_raw_pair(block.attention, stream),
        pair=(query[0].double(), key[0].double()),
        mlp=wide,
    )


def _raw_pair(attention: SelfAttention, stream: Tensor) -> Pair:
    query, key, _ = attention.qkv(stream)[0].chunk(3, dim=-1)  # each (T, C)
    heads = [part.unflatten(-1, (attention.n_head, -1)).transpose(0, 1).double() for part in (query, key)]
    return heads[0], heads[1]
