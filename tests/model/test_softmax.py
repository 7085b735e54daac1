"""Unfused softmax attention against the fused kernel, and where each is used."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.model.attention import softmax
from quillgpt.model.attention.softmax import softmax_attention, uses_unfused

BLOCK = 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few positions make several blocks."""
    monkeypatch.setattr(softmax, "BLOCK_QUERIES", BLOCK)


def heads(length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(2, 3, length, 4, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def exact(*heads: Tensor, is_causal: bool = True) -> Tensor:
    return F.scaled_dot_product_attention(*(part.double() for part in heads), is_causal=is_causal)


def test_blockwise_values_and_gradients_are_the_fused_kernels(subtests: pytest.Subtests) -> None:
    for length in (1, 5, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5):
        with subtests.test(length=length):
            results = []
            for attend in (lambda *qkv: softmax._blockwise(*qkv, 0.0), exact):
                qkv = heads(length)
                out = attend(*qkv)
                probe = torch.arange(out.numel()).view(out.shape).sin()
                results.append([out, *torch.autograd.grad((out * probe).sum(), qkv)])
            torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_bf16_on_a_cpu_is_unfused_and_equals_float64_up_to_rounding() -> None:
    for length in (BLOCK, 3 * BLOCK + 5):
        qkv = heads(length, torch.bfloat16)
        out = softmax_attention(*qkv, dropout=0.0)
        assert out.dtype == torch.bfloat16
        assert "ScaledDotProduct" not in str(out.grad_fn)
        torch.testing.assert_close(out.double(), exact(*qkv), rtol=2**-5, atol=2**-6)


def test_a_block_multiplies_no_key_that_none_of_its_queries_sees() -> None:
    query, key, value = heads(2 * BLOCK)
    key.data[:, :, BLOCK:], value.data[:, :, BLOCK:] = math.nan, math.nan
    out = softmax._blockwise(query, key, value, 0.0)
    assert out[:, :, :BLOCK].isfinite().all()
    assert out[:, :, BLOCK:].isnan().any()


def test_it_is_unfused_only_where_that_was_measured_to_be_faster() -> None:
    is_unfused = {("cpu", torch.bfloat16, 1), ("cpu", torch.bfloat16, 1024)}
    dtypes = (torch.bfloat16, torch.float32, torch.float64)
    for case in itertools.product(("cpu", "cuda", "mps"), dtypes, (1, 1024, 1025)):
        assert uses_unfused(*case) is (case in is_unfused), case


def test_a_compiled_step_of_one_query_is_unfused_and_the_same(subtests: pytest.Subtests) -> None:
    operators: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        operators[:] = [str(node.target) for node in graph.graph.nodes]
        return graph

    tolerances = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-5}
    for new, (dtype, tolerance) in itertools.product((1, 2), tolerances.items()):
        with subtests.test(new=new, dtype=dtype):
            query, key, value = (part.detach() for part in heads(3 * BLOCK, dtype))
            query = query[:, :, -new:]
            torch._dynamo.reset()
            out = torch.compile(softmax_attention, backend=backend, fullgraph=True)(query, key, value, dropout=0.0)
            last = slice(-1, None)  # of two queries the first does not see the last key
            expected = exact(query, key, value, is_causal=False)
            torch.testing.assert_close(out[:, :, last].double(), expected[:, :, last], rtol=tolerance, atol=tolerance)
            assert out.dtype == dtype
            assert any("scaled_dot_product" in name for name in operators) is (new == 2)
    torch._dynamo.reset()


def test_dropout_drops_weights() -> None:
    for dropout in (0.0, 0.5):
        query, key, _ = heads(BLOCK, torch.bfloat16)
        out = softmax_attention(query, key, torch.ones_like(query), dropout=dropout)
        assert bool(out.float().sub(1).abs().max() > 0.1) is (dropout > 0)
