"""Parameters and arithmetic of the published models, and of any other."""

import dataclasses
from collections.abc import Mapping

import pytest

from quillgpt.config import ModelConfig
from quillgpt.model.sizes import PUBLISHED_PARAMETERS, SIZES, flops_per_token, parameter_count


def counted_by_hand(config: ModelConfig) -> int:
    """The closed form: every matrix and vector of the model, by its shape."""
    width, bias = config.n_embd, int(config.bias)
    hidden = (8 * width // 3 + 7) // 8 * 8 if config.mlp == "swiglu" else 4 * width
    attention = 4 * width * width + bias * 4 * width
    inward = 2 if config.mlp == "swiglu" else 1
    mlp = (inward + 1) * width * hidden + bias * (inward * hidden + width)
    norm = width * (2 if config.norm == "layernorm" and config.bias else 1)
    embeddings = config.vocab_size * width * (1 if config.tied_head else 2)
    positions = config.context_length * width if config.position == "learned" else 0
    return embeddings + positions + config.n_layer * (attention + mlp + 2 * norm) + norm


@pytest.mark.parametrize("name", SIZES)
def test_parameter_count_is_the_published_one(name: str) -> None:
    assert parameter_count(SIZES[name]) == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("tied_head", [True, False], ids=["tied", "untied"])
def test_parameter_count_is_the_closed_form(variant: Mapping[str, object], bias: bool, tied_head: bool) -> None:
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 20, "context_length": 12, "vocab_size": 67}
    config = ModelConfig(**shape, **variant, bias=bias, tied_head=tied_head)

    assert parameter_count(config) == counted_by_hand(config)


def test_training_flops_per_token_of_gpt2_are_the_formulas() -> None:
    matrices = 124_439_808 - 1024 * 768  # learned positions are only looked up

    assert flops_per_token(SIZES["gpt2"]) == 6 * matrices + 12 * 12 * 768 * 1024


def test_a_separate_head_costs_no_arithmetic_more() -> None:
    untied = dataclasses.replace(SIZES["gpt2"], tied_head=False)

    assert parameter_count(untied) == 124_439_808 + 50257 * 768
    assert flops_per_token(untied) == flops_per_token(SIZES["gpt2"])
