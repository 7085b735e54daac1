"""nanoGPT's model with bare tensors, by the names of its weights: an imported model must equal it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def logits(weights: Mapping[str, Tensor], tokens: Tensor, *, n_layer: int, n_head: int) -> Tensor:
    """(B, T) -> (B, T, V), of every row in the file."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights.get(f"{name}.bias"), 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    x = weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][: tokens.shape[1]]
    batch, length, width = x.shape
    hidden = torch.ones(length, length).triu(1).bool()
    for layer in range(n_layer):
        block = f"transformer.h.{layer}"
        parts = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(width, dim=2)
        query, key, value = (part.view(batch, length, n_head, -1).transpose(1, 2) for part in parts)
        scores = (query @ key.transpose(2, 3) / math.sqrt(width // n_head)).masked_fill(hidden, -torch.inf)
        attended = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)
        x = x + linear(attended, f"{block}.attn.c_proj")
        wide = F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"))
        x = x + linear(wide, f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ weights["lm_head.weight"].T


def random_weights(arguments: Mapping[str, int | bool]) -> dict[str, Tensor]:
    """Weights under nanoGPT's names, all far from 0, the head tied."""
    generator = torch.Generator().manual_seed(4)
    width = int(arguments["n_embd"])
    shapes = {"transformer.wte": (arguments["vocab_size"], width), "transformer.wpe": (arguments["block_size"], width)}
    for layer in range(int(arguments["n_layer"])):
        block = f"transformer.h.{layer}"
        shapes |= {
            f"{block}.ln_1": (width,),
            f"{block}.attn.c_attn": (3 * width, width),
            f"{block}.attn.c_proj": (width, width),
            f"{block}.ln_2": (width,),
            f"{block}.mlp.c_fc": (4 * width, width),
            f"{block}.mlp.c_proj": (width, 4 * width),
        }
    shapes["transformer.ln_f"] = (width,)
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * 0.3 + (len(shape) == 1)
        if arguments["bias"] and name not in ("transformer.wte", "transformer.wpe"):
            weights[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.3
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return weights
