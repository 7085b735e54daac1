"""Each norm against its formula written out."""

import pytest
import torch

from quillgpt.config import ModelConfig
from quillgpt.model.norm import NORMS


def norm_with_random_weights(name: str, *, bias: bool = True) -> torch.nn.Module:
    norm = NORMS[name](ModelConfig(n_embd=16, n_head=2, bias=bias)).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    return norm


def test_layernorm_centres_and_scales() -> None:
    norm = norm_with_random_weights("layernorm")
    x = 1e-2 * torch.randn(2, 3, 16, dtype=torch.float64)  # small, so that epsilon counts

    centred = x - x.mean(dim=-1, keepdim=True)
    expected = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    torch.testing.assert_close(norm(x), expected, rtol=1e-10, atol=1e-12)


def test_rmsnorm_only_scales() -> None:
    norm = norm_with_random_weights("rmsnorm")
    x = 1e-2 * torch.randn(2, 3, 16, dtype=torch.float64)

    expected = x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * norm.weight

    torch.testing.assert_close(norm(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_no_norm_has_a_bias_when_the_setting_is_off(name: str) -> None:
    norm = norm_with_random_weights(name, bias=False)

    assert [parameter for parameter, _ in norm.named_parameters()] == ["weight"]


@pytest.mark.parametrize("name", NORMS)
def test_the_scale_of_the_input_does_not_matter(name: str) -> None:
    norm = norm_with_random_weights(name)
    x = 100 * torch.randn(2, 3, 16, dtype=torch.float64)

    torch.testing.assert_close(norm(1000 * x), norm(x), rtol=1e-6, atol=1e-6)
