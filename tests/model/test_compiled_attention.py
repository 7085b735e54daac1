"""Attentions under torch.compile: one graph, the same result and gradients, in one piece and in blocks."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.nn.functional import cross_entropy

from quillgpt.model import written_out
from quillgpt.model.attention import find_attention
from quillgpt.model.gpt import GPT

ONE_PIECE, BLOCKS = 256, 5


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before, nothing left behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("attention", "block"),
    [
        ("gaussian", ONE_PIECE),
        ("gaussian-poly-6", BLOCKS),
        ("pointwise-gelu", BLOCKS),
        ("power", BLOCKS),
    ],
)
def test_a_compiled_model_learns_the_same(
    monkeypatch: pytest.MonkeyPatch, tiny_gpt: Callable[..., GPT], tokens: Tensor, attention: str, block: int
) -> None:
    monkeypatch.setattr(written_out, "BLOCK_QUERIES", block)
    model = tiny_gpt(attention=attention, n_layer=1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    results = []
    for run in (model, compiled):
        model.zero_grad()
        logits = run(tokens)
        cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        results.append([logits.detach(), *(parameter.grad for parameter in model.parameters())])

    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


class Attending(torch.nn.Module):
    """An attention as a module, for torch.export."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.attend = find_attention(name)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, H, T, D), three times, to the same."""
        return self.attend(query, key, value, dropout=0.0)


@pytest.mark.parametrize("name", ["gaussian", "gaussian-normalized", "gaussian-poly-4"])
def test_an_exported_graph_is_for_every_length(name: str) -> None:
    example, longer = torch.randn(2, 2, 6, 8), torch.randn(3, 2, 300, 8)
    sizes = {0: torch.export.Dim("batch", min=1, max=64), 2: torch.export.Dim("length", min=2, max=1024)}

    exported = torch.export.export(Attending(name), (example,) * 3, dynamic_shapes=(sizes,) * 3).module()

    torch.testing.assert_close(exported(longer, longer, longer), Attending(name)(longer, longer, longer))


def test_the_compilers_kernels_give_the_fused_form() -> None:
    """The default backend, for the form that has most to do with layouts: channels, padding, the sink."""
    heads = [torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3)]
    results = []
    for attend in (find_attention("gaussian"), torch.compile(find_attention("gaussian"), fullgraph=True)):
        mixed = attend(*heads, dropout=0.0)
        results.append([mixed.detach(), *torch.autograd.grad(mixed.sum(), heads)])

    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
