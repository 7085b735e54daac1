"""What the modern recipe adds to GPT-2, each against its formula; none of it is there unless asked for."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT
from quillgpt.model.initialization import INITIALIZATIONS
from quillgpt.model.kv_cache import KVCache
from quillgpt.model.residual import RESIDUALS

PLAIN = ModelConfig(n_layer=3, n_head=2, n_embd=16, context_length=12, vocab_size=30)
MODERN = dataclasses.replace(
    PLAIN,
    norm="rmsnorm",
    position="rotary",
    qk_norm=True,
    mlp="relu2",
    bias=False,
    tied_head=False,
    embedding_norm=True,
    residual="mixed",
    value_embeddings=True,
    logit_softcap=15.0,
    initialization="zero-output",
)
TOKENS = torch.arange(20).reshape(2, 10) % 30


def model_of(config: ModelConfig, *, is_trained: bool = True) -> GPT:
    """A model in float64; "trained" is random weights everywhere, so that nothing is hidden behind a zero."""
    torch.manual_seed(3)
    model = GPT(config).double().eval()
    if is_trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
    return model


def test_a_mixed_stream_is_the_two_shares_summed() -> None:
    x, first = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    residual = RESIDUALS["mixed"](PLAIN)
    with torch.no_grad():
        residual.stream_share.copy_(torch.tensor([1.0, 0.5, 2.0]))
        residual.first_share.copy_(torch.tensor([0.0, -1.0, 0.25]))
    assert torch.equal(residual(x, first, 1), 0.5 * x - first)
    assert torch.equal(residual(x, first, 2), 2.0 * x + 0.25 * first)


def test_a_mixed_stream_begins_as_a_plain_one() -> None:
    plain, mixed = (
        model_of(PLAIN, is_trained=False),
        model_of(dataclasses.replace(PLAIN, residual="mixed"), is_trained=False),
    )
    assert torch.equal(plain(TOKENS), mixed(TOKENS))


@pytest.mark.parametrize("n_layer", [1, 2, 3, 4])
def test_every_second_block_has_a_value_embedding_and_the_last_one_too(n_layer: int) -> None:
    model = GPT(dataclasses.replace(PLAIN, n_layer=n_layer, value_embeddings=True))
    assert model.value_embeddings is not None
    assert model.value_embeddings.layers == list(range(n_layer))[::-2][::-1]


def test_a_value_embedding_is_its_gate_times_its_row_head_by_head() -> None:
    embeddings = model_of(MODERN).value_embeddings
    assert embeddings is not None
    x = torch.randn(2, 10, 16, dtype=torch.float64)
    found = embeddings(TOKENS, x, 2)
    assert found is not None
    assert embeddings(TOKENS, x, 1) is None
    row = embeddings.tables[1][TOKENS[1, 4]]
    for head in range(2):
        gate = 2 / (1 + torch.exp(-(embeddings.gates[1][head] * x[1, 4, :12]).sum()))
        expected = gate * row[8 * head : 8 * head + 8]
        torch.testing.assert_close(found[1, 4, 8 * head : 8 * head + 8], expected, rtol=1e-12, atol=1e-12)


def test_a_value_embedding_reaches_the_values_alone() -> None:
    """Attention with it is attention without it, on values that have the rows added."""
    attention = model_of(MODERN).blocks[2].attention
    x, extra = torch.randn(2, 10, 16, dtype=torch.float64), torch.randn(2, 10, 16, dtype=torch.float64)
    query, key, value = attention.queries_keys_values(x, None)
    mixed = F.scaled_dot_product_attention(
        query, key, value + extra.unflatten(-1, (2, 8)).transpose(1, 2), is_causal=True
    )
    expected = attention.projection(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, None, None, extra), expected, rtol=1e-10, atol=1e-10)


def test_capped_logits_follow_the_formula_and_keep_their_order() -> None:
    capped, free = model_of(MODERN), model_of(dataclasses.replace(MODERN, logit_softcap=0.0))
    hidden = torch.randn(2, 4, 16, dtype=torch.float64) * 30
    expected = 15.0 * torch.tanh(free.logits(hidden) / 15.0)
    torch.testing.assert_close(capped.logits(hidden).double(), expected, rtol=1e-5, atol=1e-5)
    assert capped.logits(hidden).abs().max() <= 15.0


def test_the_embedded_tokens_are_normalised_when_asked_for() -> None:
    model = model_of(dataclasses.replace(MODERN, value_embeddings=False, residual="plain"))
    assert model.embedding_norm is not None
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    model(TOKENS)
    rows = model.token_embedding(TOKENS)
    expected = rows / (rows.square().mean(-1, keepdim=True) + 1e-5).sqrt() * model.embedding_norm.weight
    torch.testing.assert_close(seen[0], expected, rtol=1e-10, atol=1e-10)


def test_zero_output_blocks_add_nothing_at_first() -> None:
    config = dataclasses.replace(MODERN, logit_softcap=0.0)
    model = model_of(config, is_trained=False)
    assert model.embedding_norm is not None
    assert model.head is not None
    stream = model.embedding_norm(model.token_embedding(TOKENS))
    expected = F.linear(model.final_norm(stream), model.head.weight)[..., :30]
    assert torch.equal(model(TOKENS), expected)


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_drawn_weights_have_the_stated_deviation(name: str) -> None:
    config = dataclasses.replace(MODERN, n_embd=256, vocab_size=200, initialization=name)
    torch.manual_seed(1)
    model = GPT(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim < 2 or parameter.numel() < 5000:
            continue
        rows = parameter[:200] if parameter.shape[0] == 256 and "tables" in parameter_name else parameter
        rows = rows[:200] if parameter_name in ("token_embedding.weight", "head.weight") else rows
        std = INITIALIZATIONS[name](parameter_name, parameter.shape, config)
        assert rows.std().item() == pytest.approx(std, rel=0.05, abs=1e-12), parameter_name


def test_the_padding_of_every_table_is_zero() -> None:
    model = GPT(MODERN)
    assert model.value_embeddings is not None
    assert model.head is not None
    for table in (model.token_embedding.weight, model.head.weight, *model.value_embeddings.tables):
        assert table.shape[0] == 64
        assert not table[30:].any()


def test_cached_generation_equals_the_whole_pass() -> None:
    model = model_of(MODERN)
    whole = model(TOKENS)
    cache = KVCache(MODERN, batch_size=2, dtype=torch.float64)
    parts = [model(TOKENS[:, :6], cache), *(model(TOKENS[:, i : i + 1], cache) for i in range(6, 10))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-10, atol=1e-10)


def test_no_later_token_changes_an_earlier_logit() -> None:
    model = model_of(MODERN)
    changed = TOKENS.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 30
    before, after = model(TOKENS), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_a_new_model_knows_nothing() -> None:
    loss = F.cross_entropy(model_of(MODERN, is_trained=False)(TOKENS).flatten(0, 1), TOKENS.flatten())
    assert loss.item() == pytest.approx(math.log(30), abs=0.02)
