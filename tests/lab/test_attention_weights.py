"""The attention weights that are shown are those that the attention applies to its values."""

import pytest
import torch

from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError
from quillgpt.lab.attention_weights import attention_weights
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT, SelfAttention

T = 11  # more than the head size, and not a multiple of it
TOKENS = torch.arange(T)


def make_model(**settings) -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 8, "context_length": 16, "vocab_size": 31, "dropout": 0.3}
    model = GPT(ModelConfig(**shape | settings)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    return model


def heads(model: GPT, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of a layer while the model runs, and the output of its attention; (H, T, D) each."""
    module = [part for part in model.modules() if isinstance(part, SelfAttention)][layer]
    caught = []
    hook = module.register_forward_pre_hook(lambda part, given: caught.extend(part.queries_keys_values(*given[:2])))
    model.eval()
    with torch.no_grad():
        model.hidden(TOKENS[None])
        hook.remove()
        return *(part[0] for part in caught), module.attention_function(*caught, dropout=0.0)[0]


def test_weights_times_values_are_the_output_of_every_attention() -> None:
    for attention in ATTENTION:
        model = make_model(attention=attention, position="rotary", qk_norm=True)
        for layer in (0, 1):
            weights = attention_weights(model, TOKENS, layer)
            _, _, value, output = heads(model, layer)
            assert weights.shape == (2, T, T)
            torch.testing.assert_close(weights @ value, output, rtol=1e-9, atol=1e-10)
            assert not weights.triu(1).any(), attention


def test_softmax_weights_are_the_softmax_of_the_scores_and_the_model_is_unchanged() -> None:
    model = make_model(attention="softmax").train()
    random = torch.get_rng_state()
    weights = attention_weights(model, TOKENS, 1)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in model.modules())
    query, key, _, _ = heads(model, 1)
    scores = query @ key.transpose(1, 2) / 2.0  # sqrt of a head size of 4
    expected = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(dim=-1)
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-10)


def test_a_layer_that_the_model_does_not_have_is_refused() -> None:
    for layer in (-1, 2):
        with pytest.raises(ConfigError, match=rf"invalid layer: {layer} .must be between 0 and 1"):
            attention_weights(make_model(), TOKENS, layer)
