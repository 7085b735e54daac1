"""Rotary positions: turning pairs of channels, so that only distances matter."""

import math

import pytest
import torch

from quillgpt.config import ModelConfig
from quillgpt.model.attention import ATTENTION
from quillgpt.model.rotary import rotate, rotation
from quillgpt.model.self_attention import SelfAttention

every_attention = pytest.mark.parametrize("attention", ATTENTION)


def turned(x: torch.Tensor, start: int) -> torch.Tensor:
    """(B, H, T, D) turned as the positions start, start + 1, ..."""
    return rotate(x, rotation(x.shape[2], x.shape[3], start=start, like=x))


@pytest.mark.parametrize("start", [0, 1, 1000])
def test_a_pair_of_channels_turns_like_a_complex_number(start: int) -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)

    pairs = torch.complex(x[..., :4], x[..., 4:])
    speeds = torch.tensor([10_000 ** (-2 * i / 8) for i in range(4)], dtype=torch.float64)
    angles = torch.arange(start, start + 5).double()[:, None] * speeds
    expected = pairs * torch.exp(1j * angles)

    torch.testing.assert_close(
        turned(x, start), torch.cat((expected.real, expected.imag), dim=-1), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("shift", [1, 17, 900])
def test_scores_depend_on_distances_only(shift: int) -> None:
    query, key = torch.randn(2, 1, 1, 6, 16, dtype=torch.float64)

    here = turned(query, 0) @ turned(key, 0).mT
    there = turned(query, shift) @ turned(key, shift).mT

    torch.testing.assert_close(there, here, rtol=1e-10, atol=1e-12)


def test_scores_do_depend_on_distances() -> None:
    query, key = torch.randn(2, 1, 1, 6, 16, dtype=torch.float64)

    assert ((turned(query, 0) @ turned(key, 0).mT - turned(query, 3) @ turned(key, 0).mT).abs() > 1e-6).all()


@every_attention
@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "qk_norm"])
def test_self_attention_turns_queries_and_keys_alike(attention: str, qk_norm: bool) -> None:
    config = ModelConfig(n_head=2, n_embd=16, position="rotary", attention=attention, qk_norm=qk_norm)
    module = SelfAttention(config, layer=0).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)

    here = module(x, rotation(5, 8, start=0, like=x), None)
    there = module(x, rotation(5, 8, start=100, like=x), None)

    torch.testing.assert_close(there, here, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(here, module(x, None, None))


def test_lengths_stay() -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)

    torch.testing.assert_close(turned(x, 40).norm(dim=-1), x.norm(dim=-1), rtol=1e-10, atol=0)


def test_angles_are_precise_in_a_bfloat16_model() -> None:
    x = torch.zeros(1, dtype=torch.bfloat16)

    cosine, sine = rotation(2, 8, start=256, like=x)

    assert cosine.dtype == sine.dtype == torch.float32
    assert abs(cosine[1, 0].item() - math.cos(257)) < 1e-5  # bfloat16 would round 257 to 256


def test_turning_keeps_the_dtype() -> None:
    x = torch.randn(1, 1, 4, 8, dtype=torch.bfloat16)

    assert turned(x, 0).dtype == torch.bfloat16
