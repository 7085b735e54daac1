"""What the model's tests share: a tiny model, and combinations of the menus."""

import itertools
from collections.abc import Callable

import pytest
import torch

from quillgpt.config import ModelConfig
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.model.positions import POSITIONS

SETTINGS = ("attention", "position", "norm", "mlp", "qk_norm")
COMBINATIONS = [
    dict(zip(SETTINGS, choice, strict=True))
    for choice in (
        *itertools.product(["softmax"], POSITIONS, NORMS, MLPS, (False, True)),
        *itertools.product(ATTENTION, ["learned"], ["layernorm"], ["gelu"], [False]),
        *itertools.product(ATTENTION, ["rotary"], ["rmsnorm"], ["relu2"], [True]),
    )
]
"""All combinations of the menus around softmax, and every attention in GPT-2's block and in the demo's."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `variant` runs once for each of the combinations."""
    if "variant" in metafunc.fixturenames:
        names = ["-".join(str(value) for value in combination.values()) for combination in COMBINATIONS]
        metafunc.parametrize("variant", COMBINATIONS, ids=names)


@pytest.fixture(autouse=True)
def same_random_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_gpt() -> Callable[..., GPT]:
    """Build a float64 model of 2 layers; 67 tokens, so that the padding is real; settings may be changed by name."""

    def build(**settings: object) -> GPT:
        shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 12, "vocab_size": 67}
        torch.manual_seed(1)
        return GPT(ModelConfig(**(shape | settings))).double()

    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two sequences as long as the tiny model's context."""
    return torch.randint(67, (2, 12), generator=torch.Generator().manual_seed(2))
