"""What the modern recipe adds to GPT-2, each against its formula."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT, RESIDUALS

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


def build(config: ModelConfig, *, is_trained: bool = True) -> GPT:
    """A model in float64; "trained" is random weights everywhere, so that no zero hides anything."""
    torch.manual_seed(3)
    model = GPT(config).double().eval()
    if is_trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
    return model


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_a_mixed_residual_is_the_weighted_sum_and_starts_as_the_plain_one() -> None:
    x, embedded = random(2, 5, 16), random(2, 5, 16)
    residual = RESIDUALS["mixed"](PLAIN)
    with torch.no_grad():
        residual.stream_share.copy_(torch.tensor([1.0, 0.5, 2.0]))
        residual.first_share.copy_(torch.tensor([0.0, -1.0, 0.25]))
    assert torch.equal(residual(x, embedded, 1), 0.5 * x - embedded)
    assert torch.equal(residual(x, embedded, 2), 2.0 * x + 0.25 * embedded)
    plain, mixed = (build(dataclasses.replace(PLAIN, residual=name), is_trained=False) for name in ("plain", "mixed"))
    assert torch.equal(plain(TOKENS), mixed(TOKENS))


def test_the_last_block_has_a_value_embedding_and_every_second_before_it() -> None:
    layers = {1: [0], 2: [1], 3: [0, 2], 4: [1, 3]}
    for n_layer, expected in layers.items():
        model = GPT(dataclasses.replace(PLAIN, n_layer=n_layer, value_embeddings=True))
        x = random(1, 4, 16).float()
        assert model.value_embeddings is not None
        values = [model.value_embeddings(TOKENS[:1, :4], x, layer) for layer in range(n_layer)]
        assert [layer for layer, value in enumerate(values) if value is not None] == expected


def test_a_value_embedding_is_its_gate_times_its_row_head_by_head() -> None:
    embeddings = build(MODERN).value_embeddings
    assert embeddings is not None
    x = random(2, 10, 16)
    value = embeddings(TOKENS, x, 2)  # (B, H, T, D)
    assert value is not None
    row = embeddings.tables[1][TOKENS[1, 4]]
    for head in range(2):
        gate = 2 / (1 + torch.exp(-(embeddings.gates[1][head] * x[1, 4, :12]).sum()))
        torch.testing.assert_close(value[1, head, 4], gate * row[8 * head : 8 * head + 8], rtol=1e-12, atol=1e-12)


def test_a_value_embedding_is_added_to_the_values_only() -> None:
    attention = build(MODERN).blocks[2].attention
    x, extra = random(2, 10, 16), random(2, 2, 10, 8)
    query, key, value = attention.queries_keys_values(x, None)
    out = F.scaled_dot_product_attention(query, key, value + extra, is_causal=True)
    expected = attention.projection(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, None, None, extra), expected, rtol=1e-10, atol=1e-10)


def test_soft_capped_logits_are_those_of_the_formula() -> None:
    capped, free = build(MODERN), build(dataclasses.replace(MODERN, logit_softcap=0.0))
    hidden = random(2, 4, 16) * 30
    expected = 15.0 * torch.tanh(free.logits(hidden) / 15.0)
    torch.testing.assert_close(capped.logits(hidden).double(), expected, rtol=1e-5, atol=1e-5)
    assert capped.logits(hidden).abs().max() <= 15.0


def test_the_embedded_tokens_are_normalized_before_the_first_block() -> None:
    model = build(dataclasses.replace(MODERN, value_embeddings=False, residual="plain"))
    assert model.embedding_norm is not None
    inputs: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    model(TOKENS)
    rows = model.token_embedding(TOKENS)
    expected = rows / (rows.square().mean(-1, keepdim=True) + 1e-5).sqrt() * model.embedding_norm.weight
    torch.testing.assert_close(inputs[0], expected, rtol=1e-10, atol=1e-10)


def test_zero_output_blocks_add_nothing_at_first_and_predict_a_uniform_distribution() -> None:
    model = build(dataclasses.replace(MODERN, logit_softcap=0.0), is_trained=False)
    assert model.embedding_norm is not None
    assert model.head is not None
    stream = model.embedding_norm(model.token_embedding(TOKENS))
    assert torch.equal(model(TOKENS), F.linear(model.final_norm(stream), model.head.weight)[..., :30])
    loss = F.cross_entropy(build(MODERN, is_trained=False)(TOKENS).flatten(0, 1), TOKENS.flatten())
    assert loss.item() == pytest.approx(math.log(30), abs=0.02)


def test_initial_weights_have_the_stated_deviation(subtests: pytest.Subtests) -> None:
    gpt2 = {"project.weight": 0.02 / math.sqrt(6), "projection.weight": 0.02 / math.sqrt(6), "": 0.02}
    zero_output = {"project.weight": 0.0, "projection.weight": 0.0, "expand.weight": 0.4 / 16, "head.weight": 0.001}
    zero_output |= {"token_embedding.weight": 0.8, "gates.0": 0.0, "gates.1": 0.0, "": 1 / 16}
    tied = zero_output | {"token_embedding.weight": 0.02}
    for name, deviations, tied_head in (
        ("gpt2", gpt2, False),
        ("zero-output", zero_output, False),
        ("zero-output", tied, True),
    ):
        shape = {"n_embd": 256, "vocab_size": 200, "initialization": name, "tied_head": tied_head}
        for parameter_name, parameter in GPT(dataclasses.replace(MODERN, **shape)).named_parameters():
            std = next(std for ending, std in deviations.items() if parameter_name.endswith(ending))
            if parameter.ndim == 2 and (parameter.numel() > 5000 or not std):
                with subtests.test(name, tied_head=tied_head, parameter=parameter_name):
                    is_table = parameter_name.startswith(("token_embedding.", "head.", "value_embeddings.tables."))
                    rows = parameter[:200] if is_table else parameter
                    assert rows.std().item() == pytest.approx(std, rel=0.05, abs=1e-12)
