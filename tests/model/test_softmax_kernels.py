"""Softmax attention written out against the fused kernel, and where each is taken."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.model.attention import softmax
from quillgpt.model.attention.softmax import is_written_out, softmax_attention

BLOCK = 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few positions make several blocks."""
    monkeypatch.setattr(softmax, "BLOCK_QUERIES", BLOCK)


def heads(length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(2, 3, length, 4, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("length", [1, 5, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5])
def test_written_out_in_blocks_it_is_the_fused_kernels_value_and_derivative(length: int) -> None:
    results = []
    for attend in (
        lambda *qkv: softmax._in_blocks(*qkv, 0.0),
        lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True),
    ):
        given = heads(length)
        mixed = attend(*given)
        (mixed * torch.arange(mixed.numel()).view(mixed.shape).sin()).sum().backward()
        results.append([mixed, *(part.grad for part in given)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", [BLOCK, 3 * BLOCK + 5])
def test_in_bf16_on_a_cpu_the_values_are_those_of_float64_to_rounding(length: int) -> None:
    given = heads(length, torch.bfloat16)
    exact = F.scaled_dot_product_attention(*(part.double() for part in given), is_causal=True)
    mixed = softmax_attention(*given, dropout=0.0)
    assert mixed.dtype == torch.bfloat16
    assert "ScaledDotProduct" not in str(mixed.grad_fn)
    torch.testing.assert_close(mixed.double(), exact, rtol=2**-5, atol=2**-6)


def test_a_block_multiplies_no_key_that_none_of_its_queries_sees() -> None:
    query, key, value = heads(2 * BLOCK)
    key.data[:, :, BLOCK:], value.data[:, :, BLOCK:] = math.nan, math.nan
    mixed = softmax._in_blocks(query, key, value, 0.0)
    assert mixed[:, :, :BLOCK].isfinite().all()
    assert mixed[:, :, BLOCK:].isnan().any()


@pytest.mark.parametrize(
    ("device", "dtype", "length", "written_out"),
    [
        ("cpu", torch.bfloat16, 1, True),
        ("cpu", torch.bfloat16, 1024, True),
        ("cpu", torch.bfloat16, 1025, False),
        ("cpu", torch.float32, 256, False),
        ("cpu", torch.float64, 256, False),
        ("cuda", torch.bfloat16, 256, False),
        ("mps", torch.bfloat16, 256, False),
    ],
)
def test_it_is_written_out_where_that_was_measured_to_be_faster(
    device: str, dtype: torch.dtype, length: int, written_out: bool
) -> None:
    assert is_written_out(device, dtype, length) is written_out


@pytest.mark.parametrize(("new", "is_fused"), [(1, False), (2, True)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_query_of_a_compiled_step_is_written_out_and_the_same(new: int, is_fused: bool, dtype: torch.dtype) -> None:
    operators: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    query, key, value = (part.detach() for part in heads(3 * BLOCK, dtype))
    query = query[:, :, -new:]
    torch._dynamo.reset()
    mixed = torch.compile(softmax_attention, backend=backend, fullgraph=True)(query, key, value, dropout=0.0)
    torch._dynamo.reset()
    exact = F.scaled_dot_product_attention(*(part.double() for part in (query, key, value)), is_causal=False)
    seen = slice(-1, None)  # of two queries the first may not look at the last key
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-5}[dtype]
    torch.testing.assert_close(mixed[:, :, seen].double(), exact[:, :, seen], rtol=tolerance, atol=tolerance)
    assert mixed.dtype == dtype
    assert any("scaled_dot_product" in name for name in operators) is is_fused


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_drops_weights(dropout: float) -> None:
    torch.manual_seed(1)
    query, key, _ = heads(BLOCK, torch.bfloat16)
    mixed = softmax_attention(query, key, torch.ones_like(query), dropout=dropout)
    assert bool(mixed.float().sub(1).abs().max() > 0.1) is (dropout > 0)
