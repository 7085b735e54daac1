"""Parameters and arithmetic of the published models, and of any other."""

import dataclasses
import itertools
from typing import Any

import pytest

from quillgpt.config import ModelConfig
from quillgpt.model.sizes import PUBLISHED_PARAMETERS, SIZES, flops_per_token, parameter_count


def closed_form(config: ModelConfig) -> int:
    """Every matrix and vector of the model, by its shape."""
    width, bias, inward = config.n_embd, int(config.bias), 2 if config.mlp == "swiglu" else 1
    hidden = (8 * width // 3 + 7) // 8 * 8 if config.mlp == "swiglu" else 4 * width
    attention = 4 * width * width + bias * 4 * width
    mlp = (inward + 1) * width * hidden + bias * (inward * hidden + width)
    norm = width * (2 if config.norm == "layernorm" and config.bias else 1)
    embeddings = config.vocab_size * width * (1 if config.tied_head else 2)
    positions = config.context_length * width if config.position == "learned" else 0
    values = (config.vocab_size * width + config.n_head * 12) if config.value_embeddings else 0
    shares = 2 * config.n_layer if config.residual == "mixed" else 0
    norms = (2 * config.n_layer + 1 + config.embedding_norm) * norm
    return embeddings + positions + config.n_layer * (attention + mlp) + norms + values + shares


def test_parameter_count_of_gpt2_is_the_published_one_and_of_any_model_the_closed_form(
    subtests: pytest.Subtests, variants: dict[str, dict[str, Any]]
) -> None:
    assert {name: parameter_count(config) for name, config in SIZES.items()} == PUBLISHED_PARAMETERS
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 20, "context_length": 12, "vocab_size": 67}
    for (name, settings), bias, tied_head in itertools.product(variants.items(), (True, False), (True, False)):
        with subtests.test(name, bias=bias, tied_head=tied_head):
            config = ModelConfig(**(shape | settings | {"bias": bias, "tied_head": tied_head}))
            assert parameter_count(config) == closed_form(config)


def test_training_flops_per_token_leave_out_the_tables_that_are_only_looked_up() -> None:
    gpt2, positions, table = SIZES["gpt2"], 1024 * 768, 50257 * 768
    attention, weights = 12 * 12 * 768 * 1024, 124_439_808 - positions
    assert flops_per_token(gpt2) == 6 * weights + attention
    assert flops_per_token(dataclasses.replace(gpt2, position="rotary")) == 6 * weights + attention
    untied = dataclasses.replace(gpt2, tied_head=False)
    assert parameter_count(untied) == 124_439_808 + table
    assert flops_per_token(untied) == 6 * weights + attention
    gates = 6 * 12 * 12
    assert flops_per_token(dataclasses.replace(gpt2, value_embeddings=True)) == 6 * (weights + gates) + attention
