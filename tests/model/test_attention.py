"""Attentions alone: what they compute, that they see nothing later, and that the last queries need no earlier ones."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError
from quillgpt.model.attention import ATTENTION, attention_of, find_attention

NAMES = [*ATTENTION, "gaussian-poly-6", "gaussian-poly-10"]
every_attention = pytest.mark.parametrize("name", NAMES)
every_shape = pytest.mark.parametrize(
    ("new", "total", "head_size"), [(1, 1, 4), (7, 7, 4), (1, 7, 3), (5, 7, 8), (33, 33, 16), (2, 40, 5)]
)


def random_heads(new: int, total: int, head_size: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Query (2, 3, new, head_size), key and value (2, 3, total, head_size) in float64, with gradients."""
    generator = torch.Generator().manual_seed(4)
    query, key, value = torch.randn(3, 2, 3, total, head_size, dtype=torch.float64, generator=generator)
    query, key = scale * query[:, :, total - new :], scale * key
    return query.clone().requires_grad_(), key.clone().requires_grad_(), value.clone().requires_grad_()


def distances(query: Tensor, keys: Tensor) -> Tensor:
    """|q - k|^2 / (2 sqrt(D)) by differences, for one query and the keys it sees."""
    return (query.unsqueeze(2) - keys).square().sum(dim=-1) / (2 * math.sqrt(keys.shape[-1]))


def scores(query: Tensor, keys: Tensor) -> Tensor:
    return torch.einsum("bhd,bhsd->bhs", query, keys) / math.sqrt(keys.shape[-1])


def softmax(query: Tensor, keys: Tensor) -> Tensor:
    weights = scores(query, keys).exp()
    return weights / weights.sum(dim=-1, keepdim=True)


def gaussian_normalized(query: Tensor, keys: Tensor) -> Tensor:
    weights = torch.exp(-distances(query, keys))
    return weights / weights.sum(dim=-1, keepdim=True)


def power(query: Tensor, keys: Tensor) -> Tensor:
    x = scores(query, keys)
    y = (x / (x.abs().max(dim=-1, keepdim=True).values + 1e-6)).pow(4)
    return y / (1e-3 + y.sum(dim=-1, keepdim=True))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": gelu,
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "identity": lambda x: x,
    "softplus": lambda x: torch.log(1 + torch.exp(x)),
}


def weights_by_the_formula(name: str, query: Tensor, keys: Tensor) -> Tensor:
    """The weights of the keys that a query sees, (2, 3, S)."""
    if name.startswith("gaussian-poly-"):
        n = int(name.rpartition("-")[2])
        return (1 - distances(query, keys) / n).pow(n)
    if name.startswith("pointwise-"):
        return POINTWISE[name.partition("-")[2]](scores(query, keys)) / keys.shape[2]
    if name == "gaussian":
        return torch.exp(-distances(query, keys))
    formulas = {"softmax": softmax, "explicit": softmax, "gaussian-normalized": gaussian_normalized, "power": power}
    return formulas[name](query, keys)


def one_position_at_a_time(name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each position sums the values up to its own by their weights."""
    new, total = query.shape[2], key.shape[2]
    mixed = []
    for i in range(new):
        seen = total - new + i + 1
        weights = weights_by_the_formula(name, query[:, :, i], key[:, :, :seen])
        mixed.append(torch.einsum("bhs,bhsd->bhd", weights, value[:, :, :seen]))
    return torch.stack(mixed, dim=2)


@every_attention
@every_shape
def test_values_and_gradients_are_those_of_the_formula(name: str, new: int, total: int, head_size: int) -> None:
    heads, same_heads = random_heads(new, total, head_size), random_heads(new, total, head_size)
    seen_through = torch.randn(2, 3, new, head_size, dtype=torch.float64)

    mixed, expected = find_attention(name)(*heads, dropout=0.0), one_position_at_a_time(name, *same_heads)
    (mixed * seen_through).sum().backward()
    (expected * seen_through).sum().backward()

    torch.testing.assert_close(mixed, expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(heads, same_heads, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)


@every_attention
def test_nothing_flows_from_later_positions(name: str) -> None:
    heads = random_heads(7, 7, 4)

    find_attention(name)(*heads, dropout=0.0)[:, :, 3].sum().backward()

    _, key, value = heads
    for earlier_and_later in (key.grad, value.grad):
        assert (earlier_and_later[:, :, 4:] == 0).all()
        assert (earlier_and_later[:, :, :4] != 0).any(dim=(0, 1, 3)).all()


@every_attention
@pytest.mark.parametrize("new", [1, 2, 6, 7])
def test_the_last_queries_give_the_last_rows_of_the_whole(name: str, new: int) -> None:
    query, key, value = random_heads(7, 7, 4)
    attend = find_attention(name)

    mixed = attend(query[:, :, -new:], key, value, dropout=0.0)

    torch.testing.assert_close(mixed, attend(query, key, value, dropout=0.0)[:, :, -new:], rtol=1e-10, atol=1e-12)


@every_attention
def test_dropout_keeps_the_mean(name: str) -> None:
    torch.manual_seed(5)
    repeats = 20_000
    query, key, value = (part[:1, :1].detach() for part in random_heads(3, 3, 4))
    many = (part.expand(repeats, -1, -1, -1) for part in (query, key, value))

    dropped = find_attention(name)(*many, dropout=0.25)

    standard_error = dropped.std(dim=0) / math.sqrt(repeats)
    kept = find_attention(name)(query, key, value, dropout=0.0)[0]
    # one weight alone: it is 0 or 4/3 of itself, with the standard deviation sqrt(1/3) of itself
    torch.testing.assert_close(dropped.std(dim=0)[:, 0], kept[:, 0].abs() * math.sqrt(1 / 3), rtol=0.03, atol=1e-12)
    assert (dropped.std(dim=0)[:, -1] > 0).any()
    assert ((dropped.mean(dim=0) - kept).abs() <= 5 * standard_error + 1e-12).all()


@pytest.mark.parametrize("length_power", [0.0, 0.5, 1.0, 2.0])
def test_pointwise_attention_divides_by_a_power_of_the_visible_positions(length_power: float) -> None:
    config = ModelConfig(attention="pointwise-sigmoid", pointwise_length_power=length_power)
    query, key, value = random_heads(5, 7, 4)

    mixed = attention_of(config)(query, key, value, dropout=0.0)

    lengths = torch.arange(3, 8, dtype=torch.float64)[:, None]
    by_length = attention_of(ModelConfig(attention="pointwise-sigmoid"))(query, key, value, dropout=0.0)
    torch.testing.assert_close(mixed, by_length * lengths ** (1 - length_power), rtol=1e-10, atol=1e-12)


def test_the_polynomial_goes_to_the_gaussian() -> None:
    heads = random_heads(7, 7, 4)
    gaussian = find_attention("gaussian")(*heads, dropout=0.0)

    off = [(find_attention(f"gaussian-poly-{n}")(*heads, dropout=0.0) - gaussian).abs().max() for n in (16, 128, 4096)]

    assert off[0] > 4 * off[1] > 64 * off[2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gausian", r"attention = 'gausian' does not exist \(did you mean gaussian\?\); choose one of: softmax, "),
        ("pointwise-rellu", r"did you mean pointwise-relu\?"),
        ("pointwise", r"does not exist"),
        *[
            (f"gaussian-poly-{n}", rf"attention = 'gaussian-poly-{n}' is not possible: expected .* N even, 2 to 65,536")
            for n in ("3", "0", "", "x", "08", "-2", "2.0", "65538", "1" * 5000 + "2", "²")
        ],
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_name_that_does_not_exist_is_refused_with_what_does(name: str, words: str) -> None:
    shortened = words if len(name) < 100 else "expected gaussian-poly-N with N even"
    with pytest.raises(ConfigError, match=shortened) as raised:
        find_attention(name)
    assert "\n" not in str(raised.value)


@every_attention
def test_shapes_can_be_asked_for_without_memory(name: str) -> None:
    heads = [torch.empty(1, 2, 300, 8, device="meta") for _ in range(3)]

    assert find_attention(name)(*heads, dropout=0.0).shape == (1, 2, 300, 8)


@every_attention
def test_zeros_and_large_numbers_are_no_nan(name: str) -> None:
    for scale in (0.0, 30.0):
        heads = random_heads(7, 7, 4, scale)

        mixed = find_attention(name)(*heads, dropout=0.0)
        mixed.sum().backward()

        assert all(part.isfinite().all() for part in (mixed, *(part.grad for part in heads)))


@every_attention
def test_a_bf16_model_gets_what_it_gave(name: str) -> None:
    heads = [part.detach().bfloat16() for part in random_heads(6, 9, 8)]

    mixed = find_attention(name)(*heads, dropout=0.0)

    assert mixed.dtype == torch.bfloat16
    exact = one_position_at_a_time(name, *[part.double() for part in heads])
    torch.testing.assert_close(mixed.double(), exact, rtol=0.05, atol=0.03)


def test_the_activations_are_torchs() -> None:
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)

    for name, ours in {"gelu": F.gelu, "silu": F.silu, "softplus": F.softplus, "tanh": torch.tanh}.items():
        torch.testing.assert_close(POINTWISE[name](x), ours(x))
