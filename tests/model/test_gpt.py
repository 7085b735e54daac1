"""The whole model: shapes, causality, the private padding, initial weights, dropout, and wrong input."""

import math
from collections.abc import Callable, Mapping
from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import quillgpt.model.gpt
from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError
from quillgpt.model.gpt import GPT, padded_vocab_size

tied_and_untied = pytest.mark.parametrize("tied_head", [True, False], ids=["tied", "untied"])


def test_logits_cover_the_true_vocabulary(tiny_gpt: Callable[..., GPT], tokens: Tensor) -> None:
    model = tiny_gpt()

    assert model(tokens).shape == (2, 12, 67)
    assert model.hidden(tokens).shape == (2, 12, 16)
    assert model.token_embedding.weight.shape == (128, 16)


def test_forward_is_logits_of_hidden(tiny_gpt: Callable[..., GPT], tokens: Tensor) -> None:
    model = tiny_gpt()

    assert torch.equal(model(tokens), model.logits(model.hidden(tokens)))


@pytest.mark.parametrize("changed", [1, 6, 11])
def test_a_token_changes_no_logit_before_it(
    tiny_gpt: Callable[..., GPT], tokens: Tensor, variant: Mapping[str, object], changed: int
) -> None:
    model = tiny_gpt(**variant).eval()
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % 67

    difference = (model(other) - model(tokens)).abs().amax(dim=(0, 2))

    assert (difference[:changed] == 0).all()
    assert (difference[changed:] > 0).all()


def test_the_order_of_earlier_tokens_matters(
    tiny_gpt: Callable[..., GPT], tokens: Tensor, variant: Mapping[str, object]
) -> None:
    model = tiny_gpt(**variant, n_layer=1).eval()  # a second layer could tell the order from what the first has seen
    swapped = tokens[:, [1, 0, *range(2, 12)]]

    assert (model(swapped)[:, -1] - model(tokens)[:, -1]).abs().max() > 1e-9


@tied_and_untied
def test_padding_starts_at_zero_and_gets_no_gradient(
    tiny_gpt: Callable[..., GPT], tokens: Tensor, tied_head: bool
) -> None:
    model = tiny_gpt(tied_head=tied_head)

    cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()

    tables = [model.token_embedding] if tied_head else [model.token_embedding, model.head]
    for table in tables:
        assert (table.weight[67:] == 0).all()
        assert (table.weight.grad[67:] == 0).all()
        assert (table.weight.grad[:67] != 0).any()


@tied_and_untied
def test_padding_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tiny_gpt: Callable[..., GPT], tokens: Tensor, tied_head: bool
) -> None:
    padded = tiny_gpt(tied_head=tied_head)
    monkeypatch.setattr(quillgpt.model.gpt, "VOCAB_MULTIPLE", 1)
    bare = tiny_gpt(tied_head=tied_head)

    assert bare.token_embedding.weight.shape == (67, 16)
    torch.testing.assert_close(bare(tokens), padded(tokens), rtol=1e-12, atol=1e-14)
    for (name, with_padding), without in zip(padded.named_parameters(), bare.parameters(), strict=True):
        assert torch.equal(with_padding[: len(without)], without), name


@pytest.mark.parametrize(("vocab_size", "rows"), [(1, 64), (64, 64), (65, 128), (50257, 50304)])
def test_vocabulary_is_padded_to_the_next_multiple_of_64(vocab_size: int, rows: int) -> None:
    assert padded_vocab_size(vocab_size) == rows


@tied_and_untied
def test_a_tied_weight_is_one_parameter_stored_once(tiny_gpt: Callable[..., GPT], tied_head: bool) -> None:
    model = tiny_gpt(tied_head=tied_head)

    assert ("head.weight" in model.state_dict()) is not tied_head
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


def test_rotary_positions_store_nothing(tiny_gpt: Callable[..., GPT]) -> None:
    stored = tiny_gpt(position="rotary").state_dict()

    assert stored.keys() == tiny_gpt().state_dict().keys() - {"position_embedding.weight"}


def test_weights_start_normal_and_residual_projections_smaller() -> None:
    torch.manual_seed(7)
    model = GPT(ModelConfig(n_layer=3, n_head=2, n_embd=128, context_length=128, vocab_size=512, tied_head=False))

    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all(), name
            continue
        is_residual = name.endswith((".attention.projection.weight", ".mlp.project.weight"))
        std = 0.02 / math.sqrt(2 * 3) if is_residual else 0.02
        count = parameter.numel()
        assert abs(parameter.mean()) < 5 * std / math.sqrt(count), name
        assert abs(parameter.std() / std - 1) < 5 / math.sqrt(2 * count), name


def test_the_seed_decides_the_weights(tiny_gpt: Callable[..., GPT]) -> None:
    first, again = tiny_gpt(), tiny_gpt()
    torch.manual_seed(8)
    other = GPT(first.config)

    assert torch.equal(first.token_embedding.weight, again.token_embedding.weight)
    assert not torch.equal(first.token_embedding.weight, other.token_embedding.weight)


def test_a_new_model_is_as_unsure_as_a_uniform_guess(tiny_gpt: Callable[..., GPT], tokens: Tensor) -> None:
    others = tokens.roll(1, dims=1)  # not the tokens themselves: a tied head knows those by their embedding

    loss = cross_entropy(tiny_gpt()(tokens).flatten(0, 1), others.flatten())

    assert abs(loss - math.log(67)) < 0.1


def test_dropout_is_off_in_eval(tiny_gpt: Callable[..., GPT], tokens: Tensor, variant: Mapping[str, object]) -> None:
    model = tiny_gpt(**variant, dropout=0.5)

    assert not torch.equal(model.train()(tokens), model.train()(tokens))
    torch.testing.assert_close(model.eval()(tokens), tiny_gpt(**variant)(tokens), rtol=0, atol=0)


@pytest.mark.parametrize(("is_training", "expected"), [(True, 0.5), (False, 0.0)], ids=["train", "eval"])
def test_the_fused_kernel_is_told_to_drop_only_in_training(
    monkeypatch: pytest.MonkeyPatch, tiny_gpt: Callable[..., GPT], tokens: Tensor, is_training: bool, expected: float
) -> None:
    softmax = import_module("quillgpt.model.attention.softmax")
    kernel, told = softmax.scaled_dot_product_attention, []

    def watched(*heads: Tensor, dropout_p: float, is_causal: bool) -> Tensor:
        told.append(dropout_p)
        return kernel(*heads, dropout_p=dropout_p, is_causal=is_causal)

    monkeypatch.setattr(softmax, "scaled_dot_product_attention", watched)
    tiny_gpt(dropout=0.5).train(is_training)(tokens)

    assert told == [expected, expected]


def test_queries_and_keys_are_normalised_before_their_product(
    monkeypatch: pytest.MonkeyPatch, tiny_gpt: Callable[..., GPT], tokens: Tensor
) -> None:
    model = tiny_gpt(qk_norm=True, position="rotary").eval()
    before = model(tokens)

    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[:32] *= 1000  # the rows of queries and keys; the norm takes it out again
        after = model(tokens)
        for block in model.blocks:
            block.attention.qkv.weight[:32] *= 1000

    torch.testing.assert_close(model(tokens), after, rtol=1e-6, atol=1e-6)
    assert not torch.equal(before, after)  # initial queries are so small that epsilon counts


def test_bf16_autocast_is_close_to_full_precision(
    tiny_gpt: Callable[..., GPT], tokens: Tensor, variant: Mapping[str, object]
) -> None:
    model = tiny_gpt(**variant).float()

    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens)
    cross_entropy(logits.float().flatten(0, 1), tokens.flatten()).backward()

    torch.testing.assert_close(logits.float(), model(tokens), rtol=0, atol=0.004)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("setting", ["attention", "norm", "mlp", "position"])
def test_a_variant_that_does_not_exist_is_an_error_that_lists_the_menu(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{setting} = 'fancy' does not exist; choose one of: \w+, \w+"):
        GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, **{setting: "fancy"}))


def test_too_many_tokens_are_an_error_with_counts(tiny_gpt: Callable[..., GPT], tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=r"got 24 tokens \(0 in the cache, 24 new\).*context_length = 12"):
        tiny_gpt()(torch.cat((tokens, tokens), dim=1))


def test_no_tokens_are_an_error(tiny_gpt: Callable[..., GPT], tokens: Tensor) -> None:
    with pytest.raises(ValueError, match="got no tokens"):
        tiny_gpt()(tokens[:, :0])


@pytest.mark.parametrize("settings", [{}, {"position": "rotary", "norm": "rmsnorm", "mlp": "relu2", "qk_norm": True}])
def test_the_model_is_one_graph_to_the_compiler(
    tiny_gpt: Callable[..., GPT], tokens: Tensor, settings: dict[str, object]
) -> None:
    model = tiny_gpt(**settings)

    compiled = torch.compile(model, backend="eager", fullgraph=True)

    torch.testing.assert_close(compiled(tokens), model(tokens), rtol=1e-12, atol=1e-12)
