"""The weights that are shown are those that the attention uses."""

import pytest
import torch

from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError
from quillgpt.evaluate.attention_weights import attention_weights
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.self_attention import SelfAttention

T = 11  # more than the head size, and no multiple of it
TOKENS = torch.arange(T)


def model(**settings) -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 8, "context_length": 16, "vocab_size": 31, "dropout": 0.3}
    made = GPT(ModelConfig(**shape | settings)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    return made


def heads(made: GPT, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys, values of a layer while the model runs, and what its attention makes of them; (H, T, D) each."""
    module = [part for part in made.modules() if isinstance(part, SelfAttention)][layer]
    caught = []
    hook = module.register_forward_pre_hook(lambda part, given: caught.extend(part.queries_keys_values(*given[:2])))
    made.eval()
    with torch.no_grad():
        made.hidden(TOKENS[None])
        hook.remove()
        return *(part[0] for part in caught), module.attend(*caught, dropout=0.0)[0]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("attention", ATTENTION)
def test_the_weights_mix_the_values_as_the_attention_does(attention: str, layer: int) -> None:
    made = model(attention=attention, position="rotary", qk_norm=True)
    weights = attention_weights(made, TOKENS, layer)
    _, _, value, mixed = heads(made, layer)
    assert weights.shape == (2, T, T)
    torch.testing.assert_close(weights @ value, mixed, rtol=1e-9, atol=1e-10)
    assert not weights.triu(1).any()


def test_softmax_weights_are_the_softmax_of_the_scores() -> None:
    made = model(attention="softmax")
    query, key, _, _ = heads(made, 1)
    scores = query @ key.transpose(1, 2) / 2.0  # sqrt of a head size of 4
    expected = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(dim=-1)
    torch.testing.assert_close(attention_weights(made, TOKENS, 1), expected, rtol=1e-9, atol=1e-10)


def test_looking_leaves_no_trace() -> None:
    made = model(attention="softmax").train()
    random = torch.get_rng_state()
    attention_weights(made, TOKENS, 0)
    assert made.training
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in made.modules())


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_layer_that_the_model_does_not_have(layer: int) -> None:
    with pytest.raises(ConfigError, match=rf"layer = {layer} is not possible: expected 0 to 1"):
        attention_weights(model(), TOKENS, layer)
