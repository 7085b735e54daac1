"""No attention but the one for reading holds a matrix of all pairs of positions, forward and backward."""

import torch

from quillgpt.model.attention import ATTENTION, find_attention
from tensor_memory import TensorMemory

HEAD_SIZE = 16
FAMILIES = ("softmax", "gaussian", "gaussian-normalized", "gaussian-poly-8", "pointwise-gelu", "power")


def memory_of(name: str, length: int, dropout: float = 0.0) -> TensorMemory:
    heads = [torch.randn(1, 1, length, HEAD_SIZE, requires_grad=True) for _ in range(3)]
    with TensorMemory(heads) as memory:
        find_attention(name).function(*heads, dropout=dropout).sum().backward()
    return memory


def test_memory_grows_with_the_context_and_not_with_its_square() -> None:
    cases = [*((name, 0.0) for name in FAMILIES), *((name, 0.1) for name in FAMILIES if name != "softmax")]
    for name, dropout in cases:
        short, long = memory_of(name, 512, dropout), memory_of(name, 1024, dropout)
        assert long.peak_bytes < 2.1 * short.peak_bytes, name
        assert long.largest <= 1024 * 256, name
    assert memory_of("explicit", 1024).peak_bytes > 3.5 * memory_of("explicit", 512).peak_bytes  # the measure sees it


def test_the_fused_kernels_take_little_more_than_softmax() -> None:
    for name in ("gaussian", "gaussian-normalized"):
        memory = memory_of(name, 1024)
        assert memory.largest <= 1025 * (HEAD_SIZE + 8)
        assert memory.peak_bytes < 2.5 * memory_of("softmax", 1024).peak_bytes


def family(name: str) -> str:
    """gaussian-poly-8 is of gaussian-poly, pointwise-relu of pointwise."""
    return name.rpartition("-")[0] if name.startswith(("gaussian-poly-", "pointwise-")) else name


def test_every_family_is_measured() -> None:
    assert {family(name) for name in ATTENTION} == {"explicit", *map(family, FAMILIES)}
