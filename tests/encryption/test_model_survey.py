"""The list of what is no polynomial: every menu entry has a verdict, and what it says of an entry is so."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from numpy.polynomial import Chebyshev
from torch import Tensor

from quillgpt.cli.encrypt_check import reach
from quillgpt.config import ModelConfig
from quillgpt.encryption.measure import measured
from quillgpt.encryption.survey import Survey, survey
from quillgpt.encryption.verdicts import ACCURACY, Approximation, attended
from quillgpt.errors import NonFiniteError
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.model.positions import POSITIONS
from quillgpt.recipes import load_recipe

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 24, "vocab_size": 31}
TOKENS = torch.arange(20) % 31

POLYNOMIALS = {"gaussian-poly-2", "gaussian-poly-4", "gaussian-poly-8", "pointwise-identity", "square"}


def model_of(**settings: object) -> GPT:
    torch.manual_seed(2)
    model = GPT(ModelConfig(**SMALL | settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def survey_of(**settings: object) -> Survey:
    return survey(model_of(**settings), TOKENS)


@pytest.mark.parametrize("name", ATTENTION)
def test_every_attention_has_a_verdict(name: str) -> None:
    found = survey_of(attention=name)
    assert (f"attention: {name}" in found.not_polynomial) is (name not in POLYNOMIALS)


@pytest.mark.parametrize("name", MLPS)
def test_every_feed_forward_network_has_a_verdict(name: str) -> None:
    found = survey_of(mlp=name, attention="gaussian-poly-2")
    assert (f"activation: {name}" in found.not_polynomial) is (name not in POLYNOMIALS)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize(("norm", "position"), list(itertools.product(NORMS, POSITIONS)))
def test_every_norm_and_position_has_a_verdict(norm: str, position: str, qk_norm: bool) -> None:
    found = survey_of(norm=norm, position=position, qk_norm=qk_norm, attention="gaussian-poly-2", mlp="square")
    assert found.not_polynomial == [f"norm: {norm}", *(["qk_norm"] if qk_norm else [])]
    assert ("positions" in found.client) is (position == "learned")
    rotations = [part.depth for part in found.parts if part.name == "position: rotary"]
    assert rotations == ([] if position == "learned" else [int(qk_norm)] * 2)


def test_depths_add_up() -> None:
    found = survey_of(attention="gaussian-poly-8", mlp="square", norm="rmsnorm")
    norms = [part.depth for part in found.parts if part.name == "norm: rmsnorm"]
    matrices, attention, activation = 4, 6, 1

    assert len(norms) == 5
    assert found.layer_depths == [
        norms[0] + norms[1] + matrices + attention + activation,
        norms[2] + norms[3] + matrices + attention + activation,
    ]
    assert found.depth == sum(found.layer_depths) + norms[4] + 1
    within = found.within_levels
    assert sum(part.depth for part in within) <= found.levels == 19
    assert sum(part.depth for part in found.parts[: len(within) + 1]) > found.levels


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_a_norms_interval_is_that_of_the_stream(norm: str) -> None:
    model = model_of(norm=norm, position="rotary")
    stream = model.token_embedding(TOKENS).detach().double()
    squares = (stream.square().mean(-1) if norm == "rmsnorm" else stream.var(-1, correction=0)) + 1e-5

    root = survey(model, TOKENS).layers[0][0].approximations[0]
    assert (root.low, root.high) == pytest.approx((float(squares.min()), float(squares.max())))
    assert survey(model, TOKENS).layers[0][0].depth == 1 + math.ceil(math.log2(root.degree + 1)) + 1


def polynomial(one: Approximation, function: object) -> Chebyshev:
    return Chebyshev.interpolate(function, one.degree, domain=[one.low, one.high])


def test_softmax_by_the_stated_polynomials_is_softmax() -> None:
    """The degrees of exp and of the inverse are enough for the weights, which are computed with them here."""
    layers, _ = measured(model_of(), TOKENS)
    query, key = layers[1].pair
    exponential, inverse = attended(ModelConfig(**SMALL), (query, key)).approximations
    scores = (query @ key.transpose(-2, -1) / math.sqrt(8)).numpy()
    visible = np.tril(np.ones((20, 20)))
    exponentials = polynomial(exponential, np.exp)(scores - scores[:, visible > 0].max()) * visible
    weights = exponentials * polynomial(inverse, np.reciprocal)(exponentials.sum(-1, keepdims=True))

    expected = torch.from_numpy(scores).masked_fill(torch.from_numpy(visible == 0), -math.inf).softmax(-1)
    assert np.abs(weights - expected.numpy()).max() < 4 * ACCURACY


@pytest.mark.parametrize(("name", "layer"), [("gelu", "expand"), ("relu2", "expand"), ("swiglu", "gate")])
def test_an_activation_by_the_stated_polynomial_is_the_activation(name: str, layer: str) -> None:
    model = model_of(mlp=name)
    layers, _ = measured(model, TOKENS)
    functions = {
        "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "relu2": lambda x: x.clamp(min=0) ** 2,
        "swiglu": torch.nn.functional.silu,
    }

    def in_numpy(x: np.ndarray) -> np.ndarray:
        return functions[name](torch.from_numpy(x)).numpy()

    x = layers[0].mlp[layer]
    one = next(part for part in survey(model, TOKENS).layers[0] if part.name == f"activation: {name}").approximations[0]
    expected: Tensor = functions[name](x)
    error = np.abs(polynomial(one, in_numpy)(x.numpy()) - expected.numpy()).max()
    assert (one.low, one.high) == (float(x.min()), float(x.max()))
    assert error < 1.1 * ACCURACY * float(expected.abs().max())


def test_the_recipe_polynomial_leaves_only_the_norm() -> None:
    lists = {}
    for recipe in ("python", "polynomial"):
        config = dataclasses.replace(load_recipe(recipe).model, **SMALL)
        torch.manual_seed(2)
        lists[recipe] = survey(GPT(config).eval(), TOKENS)

    assert lists["polynomial"].not_polynomial == ["norm: rmsnorm"]
    assert lists["python"].not_polynomial == ["norm: rmsnorm", "qk_norm", "attention: explicit", "activation: relu2"]
    assert lists["polynomial"].depth < lists["python"].depth


def test_damaged_weights_are_refused() -> None:
    model = model_of()
    with torch.no_grad():
        model.token_embedding.weight[1, 0] = math.nan
    with pytest.raises(NonFiniteError, match="not finite"):
        survey(model, TOKENS)


def test_how_far_the_levels_last_is_said() -> None:
    found = survey_of(attention="gaussian-poly-2", mlp="square")
    first = found.parts[0].depth
    sentences = {
        found.depth: "the whole model fits without bootstrapping",
        found.depth - 1: "levels last up to 'norm: layernorm' in what follows the layers",
        first: f"{first} levels last up to 'norm: layernorm' in layer 0; what follows needs bootstrapping",
        first - 1: "levels last up to the input",
    }
    for levels, words in sentences.items():
        assert words in reach(dataclasses.replace(found, levels=levels))
