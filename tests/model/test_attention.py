"""The attention functions: what they compute, and that nothing flows from later positions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError
from quillgpt.model.attention import ATTENTION, attention_of, find_attention

NAMES = [*ATTENTION, "gaussian-poly-6", "gaussian-poly-10"]
SHAPES = [(1, 1, 4), (7, 7, 4), (6, 7, 4), (2, 7, 4), (1, 7, 3), (5, 7, 8), (33, 33, 16), (2, 40, 5)]  # T, S, D


def random_heads(new: int, total: int, head_size: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Query (2, 3, new, head_size), key and value (2, 3, total, head_size) in float64, with gradients."""
    generator = torch.Generator().manual_seed(4)
    query, key, value = torch.randn(3, 2, 3, total, head_size, dtype=torch.float64, generator=generator)
    query, key = scale * query[:, :, total - new :], scale * key
    return query.clone().requires_grad_(), key.clone().requires_grad_(), value.clone().requires_grad_()


def attend(name: str, *heads: Tensor, dropout: float = 0.0) -> Tensor:
    return find_attention(name).function(*heads, dropout=dropout)


def distances(query: Tensor, keys: Tensor) -> Tensor:
    """|q - k|^2 / (2 sqrt(D)) by differences, for one query and the keys it sees."""
    return (query.unsqueeze(2) - keys).square().sum(dim=-1) / (2 * math.sqrt(keys.shape[-1]))


def scores(query: Tensor, keys: Tensor) -> Tensor:
    return torch.einsum("bhd,bhsd->bhs", query, keys) / math.sqrt(keys.shape[-1])


def normalized(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=-1, keepdim=True)


def power(x: Tensor) -> Tensor:
    y = (x / (x.abs().max(dim=-1, keepdim=True).values + 1e-6)).pow(4)
    return y / (1e-3 + y.sum(dim=-1, keepdim=True))


POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "identity": lambda x: x,
    "softplus": lambda x: torch.log(1 + torch.exp(x)),
}


def weights_of_formula(name: str, query: Tensor, keys: Tensor) -> Tensor:
    """The weights of the keys that a query sees, (2, 3, S)."""
    x, distance = scores(query, keys), distances(query, keys)
    if name.startswith("gaussian-poly-"):
        n = int(name.rpartition("-")[2])
        return (1 - distance / n).pow(n)
    if name.startswith("pointwise-"):
        return POINTWISE[name.partition("-")[2]](x) / keys.shape[2]
    return {
        "softmax": lambda: normalized(x.exp()),
        "explicit": lambda: normalized(x.exp()),
        "gaussian": lambda: torch.exp(-distance),
        "gaussian-normalized": lambda: normalized(torch.exp(-distance)),
        "power": lambda: power(x),
    }[name]()


def position_by_position(name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each position sums the values up to its own by their weights."""
    rows = []
    for i in range(query.shape[2]):
        seen = key.shape[2] - query.shape[2] + i + 1
        weights = weights_of_formula(name, query[:, :, i], key[:, :, :seen])
        rows.append(torch.einsum("bhs,bhsd->bhd", weights, value[:, :, :seen]))
    return torch.stack(rows, dim=2)


def test_values_and_gradients_are_those_of_the_formula(subtests: pytest.Subtests) -> None:
    for name in NAMES:
        for new, total, head_size in SHAPES:
            with subtests.test(name, new=new, total=total, head_size=head_size):
                heads, same_heads = random_heads(new, total, head_size), random_heads(new, total, head_size)
                probe = torch.randn(2, 3, new, head_size, dtype=torch.float64)
                out, expected = attend(name, *heads), position_by_position(name, *same_heads)
                torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
                (out * probe).sum().backward()
                (expected * probe).sum().backward()
                for ours, theirs in zip(heads, same_heads, strict=True):
                    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)


def test_nothing_flows_from_later_positions(subtests: pytest.Subtests) -> None:
    for name in NAMES:
        with subtests.test(name):
            heads = random_heads(7, 7, 4)
            attend(name, *heads)[:, :, 3].sum().backward()
            for part in heads[1:]:
                assert part.grad is not None
                assert (part.grad[:, :, 4:] == 0).all()
                assert (part.grad[:, :, :4] != 0).any(dim=(0, 1, 3)).all()


def test_dropout_drops_weights_and_keeps_their_mean(subtests: pytest.Subtests) -> None:
    repeats = 10_000
    for name in NAMES:
        with subtests.test(name):
            torch.manual_seed(5)
            heads = [part[:1, :1].detach() for part in random_heads(3, 3, 4)]
            dropped = attend(name, *(part.expand(repeats, -1, -1, -1) for part in heads), dropout=0.25)
            kept, deviation = attend(name, *heads)[0], dropped.std(dim=0)
            # a single weight is 0 or 4/3 of itself, with a standard deviation of sqrt(1/3) of itself
            torch.testing.assert_close(deviation[:, 0], kept[:, 0].abs() * math.sqrt(1 / 3), rtol=0.04, atol=1e-12)
            assert (deviation[:, -1] > 0).any()
            assert ((dropped.mean(dim=0) - kept).abs() <= 5 * deviation / math.sqrt(repeats) + 1e-12).all()


def test_pointwise_attention_divides_by_a_power_of_the_visible_positions() -> None:
    heads, lengths = random_heads(5, 7, 4), torch.arange(3, 8, dtype=torch.float64)[:, None]
    by_length = attend("pointwise-sigmoid", *heads)
    for length_power in (0.0, 0.5, 1.0, 2.0):
        config = ModelConfig(attention="pointwise-sigmoid", pointwise_length_power=length_power)
        out = attention_of(config)(*heads, dropout=0.0)
        torch.testing.assert_close(out, by_length * lengths ** (1 - length_power), rtol=1e-10, atol=1e-12)


def test_the_polynomial_converges_to_the_gaussian() -> None:
    heads = random_heads(7, 7, 4)
    gaussian = attend("gaussian", *heads)
    off = [(attend(f"gaussian-poly-{n}", *heads) - gaussian).abs().max() for n in (16, 128, 4096)]
    assert off[0] > 4 * off[1] > 64 * off[2]


def test_an_unknown_name_is_refused_in_one_line_with_the_nearest(subtests: pytest.Subtests) -> None:
    cases = {
        "gausian": r"^invalid attention: 'gausian' \(did you mean gaussian\?\); choose one of: softmax, ",
        "pointwise-rellu": r"did you mean pointwise-relu\?",
        "pointwise": "^invalid attention: 'pointwise'",
    }
    for n in ("3", "0", "", "x", "08", "-2", "2.0", "65538", "1" * 5000 + "2", "²"):
        cases[f"gaussian-poly-{n}"] = r"^invalid attention: 'gaussian-poly-.{0,100} \(must be .* N even, 2 to 65,536\)$"
    for name, expected in cases.items():
        with subtests.test(name[:20]), pytest.raises(ConfigError, match=expected) as raised:
            find_attention(name)
        assert "\n" not in str(raised.value)


def test_shapes_are_known_without_memory(subtests: pytest.Subtests) -> None:
    heads = [torch.empty(1, 2, 300, 8, device="meta") for _ in range(3)]
    for name in NAMES:
        with subtests.test(name):
            assert attend(name, *heads).shape == (1, 2, 300, 8)


def test_zeros_and_large_numbers_stay_finite(subtests: pytest.Subtests) -> None:
    for name in NAMES:
        for scale in (0.0, 30.0):
            with subtests.test(name, scale=scale):
                heads = random_heads(7, 7, 4, scale)
                out = attend(name, *heads)
                out.sum().backward()
                assert all(part is not None and part.isfinite().all() for part in (out, *(part.grad for part in heads)))


def test_bf16_in_is_bf16_out_near_the_formula(subtests: pytest.Subtests) -> None:
    heads = [part.detach().bfloat16() for part in random_heads(6, 9, 8)]
    for name in NAMES:
        with subtests.test(name):
            out = attend(name, *heads)
            assert out.dtype == torch.bfloat16
            exact = position_by_position(name, *[part.double() for part in heads])
            torch.testing.assert_close(out.double(), exact, rtol=0.05, atol=0.03)
