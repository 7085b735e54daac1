"""No attention but the one for reading holds a matrix of all pairs of positions, forward and backward."""

import pytest
import torch
from tensor_memory import TensorMemory

from quillgpt.model.attention import ATTENTION, find_attention

HEAD_SIZE = 16
FAMILIES = ("softmax", "gaussian", "gaussian-normalized", "gaussian-poly-8", "pointwise-gelu", "power")


def memory_of(name: str, length: int, dropout: float) -> TensorMemory:
    heads = [torch.randn(1, 1, length, HEAD_SIZE, requires_grad=True) for _ in range(3)]
    with TensorMemory(heads) as memory:
        find_attention(name)(*heads, dropout=dropout).sum().backward()
    return memory


@pytest.mark.parametrize(
    ("name", "dropout"), [*((name, 0.0) for name in FAMILIES), *((name, 0.1) for name in FAMILIES if name != "softmax")]
)
def test_memory_grows_with_the_context_and_not_with_its_square(name: str, dropout: float) -> None:
    half, whole = memory_of(name, 512, dropout), memory_of(name, 1024, dropout)

    assert whole.peak_bytes < 2.1 * half.peak_bytes
    assert whole.largest <= 1024 * 256


def test_the_measure_sees_a_square() -> None:
    assert memory_of("explicit", 1024, 0.0).peak_bytes > 3.5 * memory_of("explicit", 512, 0.0).peak_bytes


@pytest.mark.parametrize("name", ["gaussian", "gaussian-normalized"])
def test_the_fused_forms_take_little_more_than_softmax(name: str) -> None:
    assert memory_of(name, 1024, 0.0).largest <= 1025 * (HEAD_SIZE + 8)
    assert memory_of(name, 1024, 0.0).peak_bytes < 2.5 * memory_of("softmax", 1024, 0.0).peak_bytes


def family(name: str) -> str:
    """gaussian-poly-8 is of gaussian-poly, pointwise-relu of pointwise."""
    return name.rpartition("-")[0] if name.startswith(("gaussian-poly-", "pointwise-")) else name


def test_every_family_is_measured() -> None:
    assert {family(name) for name in ATTENTION} == {"explicit", *map(family, FAMILIES)}
