"""The default model is GPT-2: the same numbers as `transformers.GPT2LMHeadModel` with the same random weights."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT

SHAPES = {
    "one layer, one head": {"n_layer": 1, "n_head": 1, "n_embd": 8, "context_length": 5, "vocab_size": 64},
    "odd vocabulary": {"n_layer": 2, "n_head": 4, "n_embd": 32, "context_length": 16, "vocab_size": 97},
    "deep and narrow": {"n_layer": 6, "n_head": 3, "n_embd": 24, "context_length": 9, "vocab_size": 33},
}
BLOCK_NAMES = {
    "norm_1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "norm_2": "ln_2",
    "mlp.expand": "mlp.c_fc",
    "mlp.project": "mlp.c_proj",
}
OUTER_NAMES = {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"}

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def their_name(name: str) -> str:
    """Hugging Face's name of our parameter: blocks.3.mlp.expand.bias -> transformer.h.3.mlp.c_fc.bias."""
    module, kind = name.rsplit(".", 1)
    if module in OUTER_NAMES:
        return f"transformer.{OUTER_NAMES[module]}.{kind}"
    _, layer, part = module.split(".", 2)
    return f"transformer.h.{layer}.{BLOCK_NAMES[part]}.{kind}"


def in_our_layout(name: str, theirs: torch.Tensor) -> torch.Tensor:
    """Their linear layers (Conv1D) store the transpose of ours."""
    is_linear = name.endswith(("qkv.weight", "projection.weight", "expand.weight", "project.weight"))
    return theirs.T if is_linear else theirs


def twins(shape: dict[str, int], *, bias: bool, dropout: float = 0.0) -> tuple[GPT, GPT2LMHeadModel]:
    """Our model and theirs in float64, with one set of weights far from their initial values."""
    torch.manual_seed(0)
    config = ModelConfig(**shape, bias=bias, dropout=dropout, attention="explicit" if dropout else "softmax")
    theirs = GPT2LMHeadModel(
        GPT2Config(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            n_positions=config.context_length,
            vocab_size=config.vocab_size,
            activation_function="gelu_new",
            attn_implementation="eager",
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).double()
    ours = GPT(config).double()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(std=0.3)
            if name.endswith(".bias") and not bias:
                parameter.zero_()
        for name, parameter in ours.named_parameters():
            values = in_our_layout(name, theirs.get_parameter(their_name(name)))
            parameter[: len(values)] = values
    return ours, theirs


def batch(shape: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (3, T)."""
    rows = torch.randint(shape["vocab_size"], (3, shape["context_length"] + 1))
    return rows[:, :-1], rows[:, 1:]


def assert_equal_to_ten_digits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Largest difference at most 1e-10 of the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


@every_shape
@with_and_without_bias
def test_logits_equal_hugging_face(shape: dict[str, int], bias: bool) -> None:
    ours, theirs = twins(shape, bias=bias)
    inputs, _ = batch(shape)

    assert_equal_to_ten_digits(ours(inputs), theirs(inputs).logits)


@every_shape
@with_and_without_bias
def test_cross_entropy_equals_hugging_face(shape: dict[str, int], bias: bool) -> None:
    ours, theirs = twins(shape, bias=bias)
    inputs, targets = batch(shape)

    loss = cross_entropy(ours(inputs).flatten(0, 1), targets.flatten())

    assert_equal_to_ten_digits(loss, cross_entropy(theirs(inputs).logits.flatten(0, 1), targets.flatten()))


@every_shape
@with_and_without_bias
def test_every_gradient_equals_hugging_face(shape: dict[str, int], bias: bool) -> None:
    ours, theirs = twins(shape, bias=bias)
    inputs, targets = batch(shape)

    cross_entropy(ours(inputs).flatten(0, 1), targets.flatten()).backward()
    cross_entropy(theirs(inputs).logits.flatten(0, 1), targets.flatten()).backward()

    for name, parameter in ours.named_parameters():
        expected = in_our_layout(name, theirs.get_parameter(their_name(name)).grad)
        assert parameter.grad is not None
        # the keys' bias moves all scores of a query alike, so its gradient is 0 but for rounding: judge qkv as a whole
        assert_equal_to_ten_digits(parameter.grad[: len(expected)], expected)


@with_and_without_bias
def test_the_two_models_have_the_same_parameters(bias: bool) -> None:
    ours, theirs = twins(SHAPES["odd vocabulary"], bias=bias)

    expected = {name for name, _ in theirs.named_parameters() if bias or not name.endswith(".bias")}

    assert {their_name(name) for name, _ in ours.named_parameters()} == expected


def test_dropout_acts_where_gpt2_has_it() -> None:
    shape = SHAPES["odd vocabulary"]
    ours, theirs = twins(shape, bias=True, dropout=0.2)
    inputs, _ = batch(shape)

    torch.manual_seed(3)
    logits = ours.train()(inputs)
    torch.manual_seed(3)  # the same masks, if as many are drawn, in the same order and shapes
    expected = theirs.train()(inputs).logits

    assert_equal_to_ten_digits(logits, expected)
    assert not torch.equal(logits, ours.eval()(inputs))
