"""Attentions under torch.compile and torch.export: one graph, the same result and gradients."""

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from torch import Tensor

from quillgpt.model.attention import find_attention, unfused


class Attend(torch.nn.Module):
    """An attention as a module, for torch.export."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = find_attention(name).function

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.function(query, key, value, dropout=0.0)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_compiled_equals_eager(attention: str, backend: str, tolerance: float) -> None:
    """The result and the gradients, of one graph."""
    heads = [torch.randn(1, 2, 7, 8, dtype=torch.float64).requires_grad_() for _ in range(3)]
    results = []
    for attend in (Attend(attention), torch.compile(Attend(attention), backend=backend, fullgraph=True)):
        out = attend(*heads)
        results.append([out, *torch.autograd.grad((out * out).sum(), heads)])
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def test_a_compiled_unfused_attention_is_one_graph_with_the_same_result_and_gradients(
    monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    monkeypatch.setattr(unfused, "BLOCK_QUERIES", 4)  # two blocks
    for attention in ("gaussian-poly-6", "pointwise-gelu", "power"):
        with subtests.test(attention):
            assert_compiled_equals_eager(attention, "aot_eager", 1e-11)


def test_the_default_backend_gives_the_fused_gaussian() -> None:
    """It has most to do with layouts: channels, padding, the sink."""
    assert_compiled_equals_eager("gaussian", "inductor", 1e-10)


def test_an_exported_graph_is_for_every_length(subtests: pytest.Subtests) -> None:
    example, longer = torch.randn(2, 2, 6, 8), torch.randn(3, 2, 300, 8)
    sizes = {0: torch.export.Dim("batch", min=1, max=64), 2: torch.export.Dim("length", min=2, max=1024)}
    for name in ("gaussian", "gaussian-normalized", "gaussian-poly-4"):
        with subtests.test(name):
            exported = torch.export.export(Attend(name), (example,) * 3, dynamic_shapes=(sizes,) * 3).module()
            torch.testing.assert_close(exported(longer, longer, longer), Attend(name)(longer, longer, longer))
