"""The model: shapes, causality, padding of the vocabulary, initial weights, dropout, and invalid input."""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import quillgpt.model.gpt
from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError
from quillgpt.model.gpt import GPT, padded_vocab_size

NewGPT = Callable[..., GPT]
Variants = dict[str, dict[str, Any]]


def test_logits_are_those_of_the_hidden_states_for_the_true_vocabulary(tiny_gpt: NewGPT, tokens: Tensor) -> None:
    model = tiny_gpt()
    hidden = model.hidden(tokens)
    assert hidden.shape == (2, 12, 16)
    assert model(tokens).shape == (2, 12, 67)
    assert model.token_embedding.weight.shape == (128, 16)
    assert torch.equal(model(tokens), model.logits(hidden))
    assert torch.equal(model.last_logits(tokens), model.logits(hidden[:, -1:])[:, 0])


def test_a_token_changes_its_own_logits_and_those_after_it_only(
    subtests: pytest.Subtests, tiny_gpt: NewGPT, tokens: Tensor, variants: Variants
) -> None:
    for name, settings in variants.items():
        model = tiny_gpt(**settings).eval()
        before = model(tokens)
        for changed in (1, 6, 11):
            with subtests.test(name, changed=changed):
                other = tokens.clone()
                other[:, changed] = (other[:, changed] + 1) % 67
                difference = (model(other) - before).abs().amax(dim=(0, 2))
                assert (difference[:changed] == 0).all()
                assert (difference[changed:] > 0).all()


def test_the_order_of_earlier_tokens_matters(
    subtests: pytest.Subtests, tiny_gpt: NewGPT, tokens: Tensor, variants: Variants
) -> None:
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    for name, settings in variants.items():
        with subtests.test(name):
            model = tiny_gpt(**settings, n_layer=1).eval()  # a second layer could see the order through the first
            assert (model.last_logits(swapped) - model.last_logits(tokens)).abs().max() > 1e-9


@pytest.mark.parametrize(
    "settings", [{}, {"tied_head": False}, {"tied_head": False, "value_embeddings": True}], ids=str
)
def test_padding_is_zero_has_no_gradient_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tiny_gpt: NewGPT, tokens: Tensor, settings: dict[str, bool]
) -> None:
    rows = {1: 64, 64: 64, 65: 128, 50257: 50304}
    assert {vocab_size: padded_vocab_size(vocab_size) for vocab_size in rows} == rows
    model = tiny_gpt(**settings)
    cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    tables = [parameter for parameter in model.parameters() if len(parameter) == 128]
    assert len(tables) == 1 + len(settings)
    for table in tables:
        assert (table[67:] == 0).all()
        assert (table.grad[67:] == 0).all()
        assert (table.grad[:67] != 0).any()
    monkeypatch.setattr(quillgpt.model.gpt, "VOCAB_MULTIPLE", 1)
    bare = tiny_gpt(**settings)
    assert bare.token_embedding.weight.shape == (67, 16)
    torch.testing.assert_close(bare(tokens), model(tokens), rtol=1e-12, atol=1e-14)
    for (name, with_padding), without in zip(model.named_parameters(), bare.parameters(), strict=True):
        assert torch.equal(with_padding[: len(without)], without), name


def test_tied_heads_and_rotary_positions_store_nothing(tiny_gpt: NewGPT) -> None:
    learned, stored = tiny_gpt(), tiny_gpt(position="rotary", tied_head=False).state_dict()
    assert stored.keys() == learned.state_dict().keys() - {"position_embedding.weight"} | {"head.weight"}
    assert learned.state_dict().keys() == dict(learned.named_parameters()).keys()


def test_weights_start_normal_and_residual_projections_smaller(subtests: pytest.Subtests) -> None:
    model = GPT(ModelConfig(n_layer=3, n_head=2, n_embd=128, context_length=128, vocab_size=512, tied_head=False))
    for name, parameter in model.named_parameters():
        with subtests.test(name):
            if parameter.ndim == 1:
                assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all()
                continue
            is_residual = name.endswith((".attention.projection.weight", ".mlp.project.weight"))
            std, count = 0.02 / math.sqrt(2 * 3) if is_residual else 0.02, parameter.numel()
            assert abs(parameter.mean()) < 5 * std / math.sqrt(count)
            assert abs(parameter.std() / std - 1) < 5 / math.sqrt(2 * count)


def test_the_seed_decides_the_weights(tiny_gpt: NewGPT) -> None:
    first, again = tiny_gpt(), tiny_gpt()
    torch.manual_seed(8)
    other = GPT(first.config)
    assert torch.equal(first.token_embedding.weight, again.token_embedding.weight)
    assert not torch.equal(first.token_embedding.weight, other.token_embedding.weight)


def test_a_new_model_predicts_a_uniform_distribution(tiny_gpt: NewGPT, tokens: Tensor) -> None:
    others = tokens.roll(1, dims=1)  # not the tokens themselves: a tied head knows those by their embedding
    loss = cross_entropy(tiny_gpt()(tokens).flatten(0, 1), others.flatten())
    assert abs(loss - math.log(67)) < 0.1


def test_dropout_is_off_in_evaluation(
    subtests: pytest.Subtests, tiny_gpt: NewGPT, tokens: Tensor, variants: Variants
) -> None:
    for name, settings in variants.items():
        with subtests.test(name):
            model = tiny_gpt(**settings, dropout=0.5)
            assert not torch.equal(model.train()(tokens), model.train()(tokens))
            torch.testing.assert_close(model.eval()(tokens), tiny_gpt(**settings)(tokens), rtol=0, atol=0)


def test_the_fused_kernel_drops_only_in_training(
    monkeypatch: pytest.MonkeyPatch, tiny_gpt: NewGPT, tokens: Tensor
) -> None:
    softmax = import_module("quillgpt.model.attention.softmax")
    kernel, rates = softmax.scaled_dot_product_attention, []

    def recorded(*heads: Tensor, dropout_p: float, is_causal: bool) -> Tensor:
        rates.append(dropout_p)
        return kernel(*heads, dropout_p=dropout_p, is_causal=is_causal)

    monkeypatch.setattr(softmax, "scaled_dot_product_attention", recorded)
    for is_training in (True, False):
        tiny_gpt(dropout=0.5).train(is_training)(tokens)
    assert rates == [0.5, 0.5, 0.0, 0.0]


@torch.no_grad()
def test_qk_norm_removes_the_scale_of_queries_and_keys(tiny_gpt: NewGPT, tokens: Tensor) -> None:
    model, results = tiny_gpt(qk_norm=True, position="rotary").eval(), []
    for _ in range(3):
        results.append(model(tokens))
        for block in model.blocks:
            block.attention.qkv.weight[:32] *= 1000  # the rows of queries and keys
    torch.testing.assert_close(results[2], results[1], rtol=1e-6, atol=1e-6)
    assert not torch.equal(results[0], results[1])  # initial queries are so small that epsilon counts


def test_bf16_autocast_is_close_to_full_precision(
    subtests: pytest.Subtests, tiny_gpt: NewGPT, tokens: Tensor, variants: Variants
) -> None:
    for name, settings in variants.items():
        with subtests.test(name):
            model = tiny_gpt(**settings).float()
            with torch.autocast("cpu", torch.bfloat16):
                logits, stream = model(tokens), model.hidden(tokens, dtype=torch.bfloat16)
            cross_entropy(logits.float().flatten(0, 1), tokens.flatten()).backward()
            full = model.hidden(tokens)
            torch.testing.assert_close(logits.float(), model(tokens), rtol=0, atol=0.004)
            assert (stream.dtype, full.dtype) == (torch.bfloat16, torch.float32)
            assert (stream - full).norm() < 0.02 * full.norm()
            assert all(part.grad is not None and part.grad.isfinite().all() for part in model.parameters())


def test_invalid_settings_and_tokens_are_refused(subtests: pytest.Subtests, tiny_gpt: NewGPT, tokens: Tensor) -> None:
    for setting in ("attention", "norm", "mlp", "position", "residual", "initialization"):
        with (
            subtests.test(setting),
            pytest.raises(ConfigError, match=rf"^invalid {setting}: 'fancy'; choose one of: \w+, \w+"),
        ):
            tiny_gpt(**{setting: "fancy"})
    with pytest.raises(ValueError, match=r"got 24 tokens \(0 in the cache, 24 new\).*context_length = 12"):
        tiny_gpt()(torch.cat((tokens, tokens), dim=1))
    with pytest.raises(ValueError, match="got no tokens"):
        tiny_gpt()(tokens[:, :0])


def test_the_model_is_one_graph_to_the_compiler(subtests: pytest.Subtests, tiny_gpt: NewGPT, tokens: Tensor) -> None:
    for settings in ({}, {"position": "rotary", "norm": "rmsnorm", "mlp": "relu2", "qk_norm": True}):
        with subtests.test(**settings):
            model = tiny_gpt(**settings)
            compiled = torch.compile(model, backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(tokens), model(tokens), rtol=1e-12, atol=1e-12)
