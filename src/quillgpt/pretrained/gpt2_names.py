"""The one table of weight names: ours and those of Hugging Face's `GPT2LMHeadModel`, in both directions.

nanoGPT's names are Hugging Face's; it stores the matrices as we do, Hugging Face (like OpenAI's release) transposed.
docs/names.md is this table for readers.
"""

import re
from collections.abc import Mapping

HUGGING_FACE: Mapping[str, str] = {
    "token_embedding.weight": "transformer.wte.weight",
    "position_embedding.weight": "transformer.wpe.weight",
    "blocks.N.norm_1.weight": "transformer.h.N.ln_1.weight",
    "blocks.N.norm_1.bias": "transformer.h.N.ln_1.bias",
    "blocks.N.attention.qkv.weight": "transformer.h.N.attn.c_attn.weight",
    "blocks.N.attention.qkv.bias": "transformer.h.N.attn.c_attn.bias",
    "blocks.N.attention.projection.weight": "transformer.h.N.attn.c_proj.weight",
    "blocks.N.attention.projection.bias": "transformer.h.N.attn.c_proj.bias",
    "blocks.N.norm_2.weight": "transformer.h.N.ln_2.weight",
    "blocks.N.norm_2.bias": "transformer.h.N.ln_2.bias",
    "blocks.N.mlp.expand.weight": "transformer.h.N.mlp.c_fc.weight",
    "blocks.N.mlp.expand.bias": "transformer.h.N.mlp.c_fc.bias",
    "blocks.N.mlp.project.weight": "transformer.h.N.mlp.c_proj.weight",
    "blocks.N.mlp.project.bias": "transformer.h.N.mlp.c_proj.bias",
    "final_norm.weight": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}
"""Our name -> theirs, N for the number of the block."""

TRANSPOSED: frozenset[str] = frozenset(
    {"attention.qkv.weight", "attention.projection.weight", "mlp.expand.weight", "mlp.project.weight"}
)
"""Endings of our names whose matrix Hugging Face stores as (in, out); ours are (out, in)."""

OURS: Mapping[str, str] = {theirs: ours for ours, theirs in HUGGING_FACE.items()}
"""Their name -> ours."""

_BLOCK_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def to_hugging_face(name: str) -> tuple[str, bool]:
    """Their name of our weight, and whether they store it transposed; a weight they do not have is a `KeyError`.

    "blocks.3.mlp.expand.weight" -> ("transformer.h.3.mlp.c_fc.weight", True).
    """
    return _translated(name, HUGGING_FACE), name.endswith(tuple(TRANSPOSED))


def from_hugging_face(name: str) -> tuple[str, bool]:
    """Our name of their weight, and whether they store it transposed; a name we do not have is a `KeyError`."""
    ours = _translated(name, OURS)
    return ours, ours.endswith(tuple(TRANSPOSED))


def _translated(name: str, table: Mapping[str, str]) -> str:
    number = _BLOCK_NUMBER.search(name)
    if number is None:
        return table[name]
    return table[_BLOCK_NUMBER.sub("N", name, count=1)].replace("N", number[0], 1)
