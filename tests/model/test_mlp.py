"""Each feed-forward network against its formula written out."""

import math

import pytest
import torch
from torch import Tensor

from quillgpt.config import ModelConfig
from quillgpt.model.mlp import MLPS


def network(name: str, *, bias: bool = True, n_embd: int = 16) -> torch.nn.Module:
    torch.manual_seed(6)
    return MLPS[name](ModelConfig(n_embd=n_embd, n_head=2, bias=bias)).double()


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_formula(mlp: torch.nn.Module, x: Tensor) -> Tensor:
    return gelu_tanh(x @ mlp.expand.weight.T + mlp.expand.bias) @ mlp.project.weight.T + mlp.project.bias


def gelu_exact_formula(mlp: torch.nn.Module, x: Tensor) -> Tensor:
    wide = x @ mlp.expand.weight.T + mlp.expand.bias
    return (wide * (1 + torch.erf(wide / math.sqrt(2))) / 2) @ mlp.project.weight.T + mlp.project.bias


def relu2_formula(mlp: torch.nn.Module, x: Tensor) -> Tensor:
    wide = (x @ mlp.expand.weight.T + mlp.expand.bias).clamp(min=0)
    return (wide * wide) @ mlp.project.weight.T + mlp.project.bias


def square_formula(mlp: torch.nn.Module, x: Tensor) -> Tensor:
    wide = x @ mlp.expand.weight.T + mlp.expand.bias
    return (wide * wide) @ mlp.project.weight.T + mlp.project.bias


def swiglu_formula(mlp: torch.nn.Module, x: Tensor) -> Tensor:
    gate = x @ mlp.gate.weight.T + mlp.gate.bias
    swish = gate / (1 + torch.exp(-gate))
    return (swish * (x @ mlp.expand.weight.T + mlp.expand.bias)) @ mlp.project.weight.T + mlp.project.bias


FORMULAS = {
    "gelu": gelu_formula,
    "gelu-exact": gelu_exact_formula,
    "relu2": relu2_formula,
    "square": square_formula,
    "swiglu": swiglu_formula,
}


@pytest.mark.parametrize("name", MLPS)
def test_network_equals_its_formula(name: str) -> None:
    mlp = network(name)
    x = torch.randn(2, 3, 16, dtype=torch.float64)

    torch.testing.assert_close(mlp(x), FORMULAS[name](mlp, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MLPS)
def test_no_network_has_a_bias_when_the_setting_is_off(name: str) -> None:
    assert all(parameter.ndim == 2 for parameter in network(name, bias=False).parameters())


@pytest.mark.parametrize(("n_embd", "hidden"), [(768, 2048), (64, 176), (12, 32), (16, 48)])
def test_swiglu_is_two_thirds_as_wide_rounded_up_to_eight(n_embd: int, hidden: int) -> None:
    assert network("swiglu", n_embd=n_embd).expand.out_features == hidden


@pytest.mark.parametrize("name", MLPS)
def test_every_network_costs_about_eight_channels_squared(name: str) -> None:
    count = sum(parameter.numel() for parameter in network(name, bias=False, n_embd=768).parameters())

    assert count == 8 * 768**2
