"""Gaussian attention through the fused kernel: when it is used, and how exact it is at every scale and dtype."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from importlib import import_module

import pytest
import torch
from torch import Tensor

from quillgpt.model.attention import find_attention
from quillgpt.model.attention.unfused import NORM_CHANNELS, unfused_attention, with_norms

gaussian_module = import_module("quillgpt.model.attention.gaussian")
D = 64
INITIAL = 0.02 * math.sqrt(768)  # standard deviation of a query's channel in a new GPT-2
FUSED = {name: partial(find_attention(name).function, dropout=0.0) for name in ("gaussian", "gaussian-normalized")}
UNFUSED = {
    "gaussian": partial(unfused_attention, gaussian_module.gaussian_weights, dropout=0.0),
    "gaussian-normalized": partial(unfused_attention, gaussian_module.normalized_gaussian_weights, dropout=0.0),
}


def normal_heads(scale: float, length: int = 80, offset: float = 0.0) -> tuple[Tensor, ...]:
    """Query, key, value (1, 2, length, D) in float64; queries and keys of that scale around the offset."""
    query, key, value = torch.randn(3, 1, 2, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return offset + scale * query, offset + scale * key, value


def exact(name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """By differences, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    x = torch.cdist(query, key).square() / (2 * math.sqrt(D))
    exponents = (-x).masked_fill(torch.ones_like(x).triu(1).bool(), -math.inf)
    return (exponents.exp() if name == "gaussian" else exponents.softmax(dim=-1)) @ value


def value_and_gradients(attend: Callable[..., Tensor], heads: tuple[Tensor, ...]) -> list[Tensor]:
    heads = tuple(part.clone().requires_grad_() for part in heads)
    probe = torch.randn(heads[0].shape, generator=torch.Generator().manual_seed(6)).to(heads[0])
    out = attend(*heads)
    return [out.detach(), *torch.autograd.grad((out * probe).sum(), heads)]


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """The largest error of a row, relative to the longest row."""
    return float((ours.double() - exact).norm(dim=-1).max() / exact.norm(dim=-1).max())


def test_the_error_in_fp32_is_that_of_the_exponent(subtests: pytest.Subtests) -> None:
    for name, scale, offset in itertools.product(FUSED, (0.001, 0.1, INITIAL, 1.0, 2.0, 3.0), (0.0, 5.0)):
        with subtests.test(name, scale=scale, offset=offset):
            heads = tuple(part.float() for part in normal_heads(scale, offset=offset))
            ours = value_and_gradients(FUSED[name], heads)
            right = value_and_gradients(partial(exact, name), tuple(part.double() for part in heads))
            largest_exponent = float(sum(part.square().sum(dim=-1).max() for part in heads[:2])) / (2 * math.sqrt(D))
            allowed = 2**-22 * (4 + largest_exponent)  # a sum of D products keeps 24 bits of its terms
            errors = [*map(relative_error, ours, right)]
            # far from the origin a gradient is a difference of two large sums
            assert (errors[0] if offset else max(errors)) < allowed


def test_the_error_in_bf16_is_that_of_its_results(subtests: pytest.Subtests) -> None:
    cases = itertools.product(FUSED, (0.1, INITIAL, 1.0, 2.0), (False, True), (FUSED, UNFUSED))
    for name, scale, is_autocast, forms in cases:
        with subtests.test(name, scale=scale, is_autocast=is_autocast, is_fused=forms is FUSED):
            heads = tuple(part.bfloat16() for part in normal_heads(scale))
            right = value_and_gradients(partial(exact, name), tuple(part.double() for part in heads))
            with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
                given = tuple(part.float() for part in heads) if is_autocast else heads
                ours = value_and_gradients(forms[name], given)
            assert ours[0].dtype == torch.bfloat16
            errors = [*map(relative_error, ours, right)]
            assert max(errors) < 0.02
            assert errors[0] < 0.006


def weight_error(query: Tensor, key: Tensor, kept: slice) -> float:
    """The largest relative error of a weight when only these of a norm's two channels are kept, in bf16."""
    query, key = query.bfloat16(), key.bfloat16()
    of_queries, of_keys = (part.double() for part in with_norms(query, key))
    is_kept = torch.zeros(NORM_CHANNELS // 2)
    is_kept[kept] = 1
    exponents = (of_queries * torch.cat((torch.ones(D), is_kept, is_kept))) @ of_keys.mT / math.sqrt(D)
    right = -torch.cdist(query.double(), key.double()).square() / (2 * math.sqrt(D))
    return float((exponents - right).expm1().abs().max())


def test_two_channels_of_bf16_carry_a_norm_and_one_does_not() -> None:
    query, key, _ = normal_heads(INITIAL, length=1024)
    assert 0.006 < weight_error(query, key, slice(0, 1)) < 0.015
    assert weight_error(query, key, slice(0, 2)) < 3e-5


def test_where_every_weight_underflows_the_sum_is_zero_and_never_nan(subtests: pytest.Subtests) -> None:
    for name, dtype in itertools.product(FUSED, (torch.float32, torch.bfloat16, torch.float64)):
        with subtests.test(name, dtype=dtype):
            for result in value_and_gradients(FUSED[name], tuple(part.to(dtype) for part in normal_heads(100.0))):
                assert result.isfinite().all()
                assert name != "gaussian" or (result == 0).all()


def test_small_weights_are_not_lost_next_to_the_sink() -> None:
    query, key, value = torch.zeros(1, 2, 8, D), torch.zeros(1, 2, 8, D), torch.rand(1, 2, 8, D)
    query[..., 0] = math.sqrt(60 * 2 * math.sqrt(D))  # weights of exp(-60), the sink's is 1
    out = FUSED["gaussian"](query, key, value)
    torch.testing.assert_close(out, value.cumsum(dim=2) * math.exp(-60), rtol=3e-5, atol=0)


def test_thousands_of_equal_keys_are_summed() -> None:
    same, value = torch.randn(1, 1, 1, D).expand(1, 1, 4000, D), torch.rand(1, 1, 4000, D)
    out = FUSED["gaussian"](same, same, value)
    torch.testing.assert_close(out, value.double().cumsum(dim=2).float(), rtol=1e-5, atol=0)


def test_the_fused_kernel_is_used_unless_weights_are_dropped(
    monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    kernel, called = gaussian_module.scaled_dot_product_attention, []

    def recorded(*heads: Tensor, **settings: object) -> Tensor:
        called.append({part.shape[3] % 8 for part in heads})
        return kernel(*heads, **settings)

    monkeypatch.setattr(gaussian_module, "scaled_dot_product_attention", recorded)
    for name, dropout, (new, total) in itertools.product(FUSED, (0.0, 0.1), ((5, 5), (1, 1), (1, 5), (3, 5))):
        with subtests.test(name, dropout=dropout, new=new, total=total):
            query, key, value = normal_heads(1.0, total)
            called.clear()
            find_attention(name).function(query[:, :, -new:], key, value, dropout=dropout)
            assert called == ([] if dropout else [{0}])
