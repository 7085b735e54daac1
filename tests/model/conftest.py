"""Shared by the model's tests: a tiny model, its tokens, and variants of it that cover the menus."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from quillgpt.config import ModelConfig
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.model.positions import POSITIONS

Settings = dict[str, Any]
MENUS = {"position": [*POSITIONS], "norm": [*NORMS], "mlp": [*MLPS], "qk_norm": [False, True]}
DEMO = {"position": "rotary", "norm": "rmsnorm", "mlp": "relu2", "qk_norm": True}
MODERN = DEMO | {"bias": False, "tied_head": False, "embedding_norm": True, "logit_softcap": 15.0}
MODERN |= {"residual": "mixed", "value_embeddings": True}


def pairwise(menus: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Few combinations in which any two values of two menus occur together."""
    rows, chosen = [dict(zip(menus, row, strict=True)) for row in itertools.product(*menus.values())], []
    missing = {pair for row in rows for pair in itertools.combinations(row.items(), 2)}
    while missing:
        chosen.append(max(rows, key=lambda row: len(missing.intersection(itertools.combinations(row.items(), 2)))))
        missing.difference_update(itertools.combinations(chosen[-1].items(), 2))
    return chosen


@pytest.fixture(scope="session")
def variants() -> dict[str, Settings]:
    """All pairs of the menus, every attention in GPT-2's block and in the demo's, and the modern recipe, by name."""
    attentions = [others | {"attention": name} for name in ATTENTION for others in ({}, DEMO)]
    return {" ".join(map(str, settings.values())): settings for settings in [*pairwise(MENUS), *attentions, MODERN]}


@pytest.fixture(autouse=True)
def same_random_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_gpt() -> Callable[..., GPT]:
    """Build a float64 model of 2 layers; 67 tokens, so that the padding is real; settings may be changed by name."""

    def build(**settings: Any) -> GPT:
        shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 12, "vocab_size": 67}
        torch.manual_seed(1)
        return GPT(ModelConfig(**(shape | settings))).double()

    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two sequences as long as the tiny model's context."""
    return torch.randint(67, (2, 12), generator=torch.Generator().manual_seed(2))
