"""Gaussian attention through the fused kernel: when it is taken, and how exact it is at every scale and dtype."""

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module

import pytest
import torch
from torch import Tensor

from quillgpt.model.attention import find_attention
from quillgpt.model.squared_distance import NORM_CHANNELS, with_norms
from quillgpt.model.written_out import mix

gaussian_module = import_module("quillgpt.model.attention.gaussian")
both_forms = pytest.mark.parametrize("name", ["gaussian", "gaussian-normalized"])
D = 64
INITIAL = 0.02 * math.sqrt(768)  # standard deviation of a query's channel in a new GPT-2


def normal_heads(scale: float, length: int = 80, offset: float = 0.0) -> tuple[Tensor, ...]:
    """Query, key, value (1, 2, length, D) in float64; queries and keys of that scale around the offset."""
    query, key, value = torch.randn(3, 1, 2, length, D, dtype=torch.float64)
    return offset + scale * query, offset + scale * key, value


def by_differences(name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    x = torch.cdist(query, key).square() / (2 * math.sqrt(D))
    exponents = (-x).masked_fill(torch.ones_like(x).triu(1).bool(), -math.inf)
    return (exponents.exp() if name == "gaussian" else exponents.softmax(dim=-1)) @ value


def value_and_gradients(attend: Callable[..., Tensor], *heads: Tensor) -> list[Tensor]:
    heads = tuple(part.clone().requires_grad_() for part in heads)
    seen_through = torch.randn(heads[0].shape, generator=torch.Generator().manual_seed(6)).to(heads[0])
    mixed = attend(*heads)
    (mixed * seen_through).sum().backward()
    return [mixed.detach(), *(part.grad for part in heads if part.grad is not None)]


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """The largest error of a row, in lengths of the longest row."""
    return float((ours.double() - exact).norm(dim=-1).max() / exact.norm(dim=-1).max())


@both_forms
@pytest.mark.parametrize("offset", [0.0, 5.0])
@pytest.mark.parametrize("scale", [0.001, 0.1, INITIAL, 1.0, 2.0, 3.0])
def test_the_error_in_fp32_is_that_of_the_exponent(name: str, scale: float, offset: float) -> None:
    heads = normal_heads(scale, offset=offset)
    fp32 = [part.float() for part in heads]

    ours = value_and_gradients(lambda *parts: find_attention(name)(*parts, dropout=0.0), *fp32)
    exact = value_and_gradients(lambda *parts: by_differences(name, *parts), *(part.double() for part in fp32))

    largest_exponent = float(sum(part.square().sum(dim=-1).max() for part in heads[:2])) / (2 * math.sqrt(D))
    allowed = 2**-22 * (4 + largest_exponent)  # a sum of D products keeps 24 bits of the numbers that it is made of
    assert relative_error(ours[0], exact[0]) < allowed
    if not offset:  # far from the origin a gradient is a difference of two large sums
        assert max(relative_error(our, right) for our, right in zip(ours, exact, strict=True)) < allowed


WRITTEN_OUT = {
    "gaussian": partial(mix, gaussian_module.gaussian_weights, dropout=0.0),
    "gaussian-normalized": partial(mix, gaussian_module.normalized_gaussian_weights, dropout=0.0),
}


@both_forms
@pytest.mark.parametrize("scale", [0.1, INITIAL, 1.0, 2.0])
@pytest.mark.parametrize("is_autocast", [False, True], ids=["bf16", "autocast"])
@pytest.mark.parametrize("is_fused", [True, False], ids=["fused", "written out"])
def test_the_error_in_bf16_is_that_of_its_results(name: str, scale: float, is_autocast: bool, is_fused: bool) -> None:
    attend = partial(find_attention(name), dropout=0.0) if is_fused else WRITTEN_OUT[name]
    heads = [part.bfloat16() for part in normal_heads(scale)]
    given = [part.float() for part in heads] if is_autocast else heads

    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        ours = value_and_gradients(attend, *given)
    exact = value_and_gradients(lambda *parts: by_differences(name, *parts), *(part.double() for part in heads))

    assert ours[0].dtype == torch.bfloat16
    for our, right in zip(ours, exact, strict=True):
        assert relative_error(our, right) < 0.02
    assert relative_error(ours[0], exact[0]) < 0.006


def weight_error(query: Tensor, key: Tensor, kept: slice) -> float:
    """The largest relative error of a weight when only these of a norm's two channels are kept, in bf16."""
    query, key = query.bfloat16(), key.bfloat16()
    of_both, of_keys = (part.double() for part in with_norms(query, key))
    of_norms = torch.zeros(NORM_CHANNELS // 2)
    of_norms[kept] = 1
    channels = torch.cat((torch.ones(D), of_norms, of_norms))
    exponents = (of_both * channels) @ of_keys.mT / math.sqrt(D)
    exact = -torch.cdist(query.double(), key.double()).square() / (2 * math.sqrt(D))
    return float((exponents - exact).expm1().abs().max())


def test_two_channels_of_bf16_carry_a_norm_and_one_does_not() -> None:
    torch.manual_seed(11)
    query, key, _ = normal_heads(INITIAL, length=1024)

    assert 0.006 < weight_error(query, key, slice(0, 1)) < 0.015
    assert weight_error(query, key, slice(0, 2)) < 3e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_where_every_weight_underflows_the_sum_is_nothing(dtype: torch.dtype) -> None:
    heads = [part.to(dtype) for part in normal_heads(100.0)]

    for result in value_and_gradients(lambda *parts: find_attention("gaussian")(*parts, dropout=0.0), *heads):
        assert (result == 0).all()


@both_forms
def test_far_keys_are_never_nan(name: str) -> None:
    heads = [part.float() for part in normal_heads(100.0)]

    for result in value_and_gradients(lambda *parts: find_attention(name)(*parts, dropout=0.0), *heads):
        assert result.isfinite().all()


def test_weights_that_are_small_are_small_and_not_lost() -> None:
    query, key, value = torch.zeros(1, 2, 8, D), torch.zeros(1, 2, 8, D), torch.rand(1, 2, 8, D)
    query[..., 0] = math.sqrt(60 * 2 * math.sqrt(D))  # weights of exp(-60) beside a sink of 1

    mixed = find_attention("gaussian")(query, key, value, dropout=0.0)

    torch.testing.assert_close(mixed, value.cumsum(dim=2) * math.exp(-60), rtol=3e-5, atol=0)


def test_thousands_of_equal_keys_are_summed() -> None:
    same = torch.randn(1, 1, 1, D).expand(1, 1, 4000, D)
    value = torch.rand(1, 1, 4000, D)

    mixed = find_attention("gaussian")(same, same, value, dropout=0.0)

    torch.testing.assert_close(mixed, value.double().cumsum(dim=2).float(), rtol=1e-5, atol=0)


@both_forms
@pytest.mark.parametrize(("dropout", "calls"), [(0.0, 1), (0.1, 0)])
@pytest.mark.parametrize(("new", "total"), [(5, 5), (1, 1), (1, 5), (3, 5)])
def test_the_fused_kernel_is_taken_unless_something_is_dropped(
    monkeypatch: pytest.MonkeyPatch, name: str, dropout: float, calls: int, new: int, total: int
) -> None:
    kernel, called = gaussian_module.scaled_dot_product_attention, []

    def watched(*heads: Tensor, **settings: object) -> Tensor:
        called.append({part.shape[3] % 8 for part in heads})
        return kernel(*heads, **settings)

    monkeypatch.setattr(gaussian_module, "scaled_dot_product_attention", watched)
    query, key, value = normal_heads(1.0, total)
    find_attention(name)(query[:, :, -new:], key, value, dropout=dropout)

    assert called == calls * [{0}]
