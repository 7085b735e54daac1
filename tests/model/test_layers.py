"""Norms, feed-forward networks and rotary positions: their formulas, and those with a custom backward pass."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from quillgpt.config import ModelConfig
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import SelfAttention
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS, rms_norm
from quillgpt.model.positions import rotate, rotation


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def rms_formula(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()


def rotated(x: Tensor, start: int = 7) -> Tensor:
    """(..., T, D) at the positions start, start + 1, ..."""
    return rotate(x, rotation(x.shape[-2], x.shape[-1], start=start, like=x))


def rotation_formula(x: Tensor) -> Tensor:
    """A pair of channels as a complex number."""
    half = x.shape[-1] // 2
    speeds = torch.tensor([10_000 ** (-i / half) for i in range(half)], dtype=x.dtype)
    angles = torch.arange(7, 7 + x.shape[-2], dtype=x.dtype)[:, None] * speeds
    out = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angles)
    return torch.cat((out.real, out.imag), dim=-1)


CUSTOM_BACKWARD = {
    "rms_norm": (rms_norm, rms_formula),
    "rotate": (rotated, rotation_formula),
    "squared_relu": (MLPS["relu2"].build(ModelConfig(n_embd=2, n_head=1)).activation, lambda x: x * x.clamp(min=0)),
}


def test_custom_backward_passes_have_the_values_and_derivatives_of_the_formulas(subtests: pytest.Subtests) -> None:
    for (name, functions), shape in itertools.product(CUSTOM_BACKWARD.items(), ((5, 8), (2, 3, 4, 8))):
        for scale in (1.0, 1e-3):  # of small numbers epsilon counts
            with subtests.test(name, shape=shape, scale=scale):
                results = []
                for function in functions:
                    x = (scale * random(*shape)).detach().requires_grad_()
                    value = function(x)
                    results.append((value, *torch.autograd.grad((value * random(*shape).flip(0)).sum(), x)))
                torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    for shape in ((5, 8), (2, 3, 4, 8)):
        x, weight = random(*shape), random(shape[-1])
        torch.testing.assert_close(rms_norm(x, weight), rms_formula(x) * weight, rtol=1e-10, atol=1e-12)
        assert torch.autograd.gradcheck(rms_norm, (x, weight))


def test_they_are_used_in_eager_training_only_and_keep_value_and_dtype(subtests: pytest.Subtests) -> None:
    operations: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        operations.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    for name, (function, formula) in CUSTOM_BACKWARD.items():
        with subtests.test(name):
            x = random(2, 5, 8)
            value = function(x)
            assert type(value.grad_fn).__name__.startswith("_")  # our class, not torch's own operation
            with torch.no_grad():
                torch.testing.assert_close(function(x), value.detach(), rtol=1e-12, atol=1e-12)
            operations.clear()
            torch._dynamo.reset()
            torch.testing.assert_close(torch.compile(function, backend=backend)(x), value, rtol=1e-12, atol=1e-12)
            assert operations
            assert not [target for target in operations if "autograd" in target.lower()]
            x = random(2, 64, 8).detach().bfloat16().requires_grad_()
            (gradient,) = torch.autograd.grad(function(x).sum(), x)
            assert function(x).dtype == gradient.dtype == torch.bfloat16
            torch.testing.assert_close(function(x).double(), formula(x.double()), rtol=2**-6, atol=2**-6)
    torch._dynamo.reset()


def test_norms_are_their_formulas_and_have_a_bias_only_if_on(subtests: pytest.Subtests) -> None:
    x = 1e-2 * random(2, 3, 16).detach()  # small, so that epsilon counts
    centred = {"layernorm": x - x.mean(dim=-1, keepdim=True), "rmsnorm": x}
    for name, bias in itertools.product(NORMS, (True, False)):
        with subtests.test(name, bias=bias):
            norm = NORMS[name](ModelConfig(n_embd=16, n_head=2, bias=bias)).double()
            for parameter in norm.parameters():
                nn.init.normal_(parameter)
            has_bias = bias and name == "layernorm"
            assert [parameter for parameter, _ in norm.named_parameters()] == ["weight", "bias"][: 1 + has_bias]
            expected = rms_formula(centred[name]) * norm.weight + (norm.bias if has_bias else 0)
            torch.testing.assert_close(norm(x), expected, rtol=1e-10, atol=1e-12)


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu-exact": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "square": lambda x: x * x,
}


def network(name: str, *, bias: bool = True, n_embd: int = 16) -> nn.Module:
    return MLPS[name].build(ModelConfig(n_embd=n_embd, n_head=2, bias=bias)).double()


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def test_networks_are_their_formulas_and_have_about_eight_channels_squared(subtests: pytest.Subtests) -> None:
    x = random(2, 3, 16)
    for name in MLPS:
        with subtests.test(name):
            mlp = network(name)
            if name == "swiglu":
                gate = linear(mlp.gate, x)
                wide = gate / (1 + torch.exp(-gate)) * linear(mlp.expand, x)
            else:
                wide = ACTIVATIONS[name](linear(mlp.expand, x))
            torch.testing.assert_close(mlp(x), linear(mlp.project, wide), rtol=1e-10, atol=1e-12)
            parameters = list(network(name, bias=False, n_embd=768).parameters())
            assert all(parameter.ndim == 2 for parameter in parameters)
            assert sum(parameter.numel() for parameter in parameters) == 8 * 768**2
    widths = {768: 2048, 64: 176, 12: 32, 16: 48}  # 8/3, rounded up to a multiple of 8
    assert {n_embd: network("swiglu", n_embd=n_embd).expand.out_features for n_embd in widths} == widths


def test_scores_of_rotated_heads_depend_on_distances_and_on_nothing_else(subtests: pytest.Subtests) -> None:
    query, key = torch.randn(2, 1, 1, 6, 16, dtype=torch.float64)
    scores = rotated(query, 0) @ rotated(key, 0).mT
    for shift in (1, 17, 900):
        torch.testing.assert_close(rotated(query, shift) @ rotated(key, shift).mT, scores, rtol=1e-10, atol=1e-12)
    assert ((scores - rotated(query, 3) @ rotated(key, 0).mT).abs() > 1e-6).all()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    for attention, qk_norm in itertools.product(ATTENTION, (False, True)):
        with subtests.test(attention, qk_norm=qk_norm):
            config = ModelConfig(n_head=2, n_embd=16, position="rotary", attention=attention, qk_norm=qk_norm)
            module = SelfAttention(config, layer=0).double()
            here, there = (module(x, rotation(5, 8, start=start, like=x), None) for start in (0, 100))
            torch.testing.assert_close(there, here, rtol=1e-10, atol=1e-12)
            assert not torch.allclose(here, module(x, None, None))


def test_angles_are_precise_in_a_bfloat16_model() -> None:
    cosine, sine = rotation(2, 8, start=256, like=torch.zeros(1, dtype=torch.bfloat16))
    assert cosine.dtype == sine.dtype == torch.float32
    assert abs(cosine[1, 0].item() - math.cos(257)) < 1e-5  # bfloat16 would round 257 to 256
