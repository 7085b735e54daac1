"""Derivatives written by hand against torch's own, and who is given them."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import rms_norm
from quillgpt.model.rotary import rotate, rotation

SHAPES = [(5, 8), (2, 3, 4, 8)]


def numbers(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def squared_relu(x: Tensor) -> Tensor:
    """As the menu has it, out of a network whose two matrices are the identity."""
    return MLPS["relu2"](ModelConfig(n_embd=2, n_head=1, bias=False)).activation(x)


def turn(x: Tensor) -> Tensor:
    return rotate(x, rotation(x.shape[-2], x.shape[-1], start=7, like=x))


def turned_as_written(x: Tensor) -> Tensor:
    """A pair of channels as a complex number."""
    half = x.shape[-1] // 2
    speeds = torch.tensor([10_000 ** (-i / half) for i in range(half)], dtype=x.dtype)
    angles = torch.arange(7, 7 + x.shape[-2], dtype=x.dtype)[:, None] * speeds
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


FORMULAS = {
    "rms_norm": (rms_norm, lambda x: x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()),
    "rotate": (turn, turned_as_written),
    "squared_relu": (squared_relu, lambda x: torch.where(x > 0, x * x, 0.0)),
}
every_formula = pytest.mark.parametrize("name", FORMULAS)


@every_formula
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_derivative_are_the_formulas(name: str, shape: tuple[int, ...]) -> None:
    by_hand, as_written = FORMULAS[name]
    x, y = numbers(*shape), numbers(*shape)
    weights = numbers(*shape).detach().flip(0)
    results = []
    for function, argument in ((by_hand, x), (as_written, y)):
        value = function(argument)
        (value * weights).sum().backward()
        results.append((value, argument.grad))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm_with_a_weight_has_the_derivatives_of_its_formula(shape: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(rms_norm, (numbers(*shape), numbers(shape[-1])))
    x, weight = numbers(*shape), numbers(shape[-1])
    expected = x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight), expected, rtol=1e-10, atol=1e-12)


def test_a_norm_of_small_numbers_counts_epsilon() -> None:
    x = (1e-3 * numbers(4, 8)).detach().requires_grad_()
    expected = x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(rms_norm(x), expected, rtol=1e-10, atol=1e-12)


@every_formula
def test_the_dtype_stays_and_short_numbers_are_near(name: str) -> None:
    by_hand, as_written = FORMULAS[name]
    x = numbers(2, 64, 8).detach().bfloat16().requires_grad_()
    value = by_hand(x)
    value.sum().backward()
    assert value.dtype == x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(value.double(), as_written(x.double()), rtol=2**-6, atol=2**-6)


@every_formula
def test_with_gradients_and_without_the_values_agree(name: str) -> None:
    by_hand, _ = FORMULAS[name]
    x = numbers(2, 5, 8)
    with torch.no_grad():
        plain = by_hand(x)
    assert "Backward" in type(by_hand(x).grad_fn).__name__
    torch.testing.assert_close(by_hand(x), plain, rtol=1e-12, atol=1e-12)


@every_formula
def test_a_compiler_sees_torchs_own_operations(name: str) -> None:
    by_hand, _ = FORMULAS[name]
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    x = numbers(2, 5, 8)
    torch._dynamo.reset()
    value = torch.compile(by_hand, backend=backend)(x)
    torch._dynamo.reset()
    assert seen
    assert not [target for target in seen if "autograd" in target.lower()]
    torch.testing.assert_close(value, by_hand(x), rtol=1e-12, atol=1e-12)


MODERN = {"position": "rotary", "norm": "rmsnorm", "qk_norm": True, "mlp": "relu2", "bias": False}


@pytest.mark.parametrize("settings", [{}, MODERN, MODERN | {"value_embeddings": True, "residual": "mixed"}])
def test_a_stream_in_bf16_is_near_the_same_model_in_fp32(settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=61, **settings))
    tokens = torch.randint(61, (2, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short = model.hidden(tokens, dtype=torch.bfloat16)
    full = model.hidden(tokens)
    assert (short.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    assert (short - full).norm() < 0.02 * full.norm()
    assert math.isfinite(F.mse_loss(short.float(), full).item())
