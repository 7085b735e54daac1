"""The default model is GPT-2: the same numbers as `transformers.GPT2LMHeadModel` with the same random weights."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT

SHAPES = {
    "one layer, one head": {"n_layer": 1, "n_head": 1, "n_embd": 8, "context_length": 5, "vocab_size": 64},
    "odd vocabulary": {"n_layer": 2, "n_head": 4, "n_embd": 32, "context_length": 16, "vocab_size": 97},
    "deep and narrow": {"n_layer": 6, "n_head": 3, "n_embd": 24, "context_length": 9, "vocab_size": 33},
}
NAMES = {  # ours -> theirs, written here independently of the converter
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "final_norm": "ln_f",
    "blocks": "h",
    "norm_1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "norm_2": "ln_2",
    "mlp.expand": "mlp.c_fc",
    "mlp.project": "mlp.c_proj",
}


def their_name(name: str) -> str:
    """blocks.3.mlp.expand.bias -> transformer.h.3.mlp.c_fc.bias."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return f"transformer.{name}"


def in_our_layout(name: str, theirs: Tensor) -> Tensor:
    """Their linear layers (Conv1D) store the transpose of ours."""
    return theirs.T if name.endswith(("qkv.weight", "projection.weight", "expand.weight", "project.weight")) else theirs


def twins(shape: dict[str, int], *, bias: bool, dropout: float = 0.0) -> tuple[GPT, GPT2LMHeadModel]:
    """Our model and theirs in float64, with one set of weights far from their initial values."""
    torch.manual_seed(0)
    attention = "explicit" if dropout else "softmax"
    ours = GPT(ModelConfig(**shape, bias=bias, dropout=dropout, attention=attention)).double()
    settings = {"n_positions": shape["context_length"], "activation_function": "gelu_new"}
    settings |= {name: shape[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    settings |= {"bos_token_id": 0, "eos_token_id": 0, "attn_implementation": "eager"}
    settings |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    theirs = GPT2LMHeadModel(GPT2Config(**settings)).double()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(std=0.3)
            if name.endswith(".bias") and not bias:
                parameter.zero_()
        for name, parameter in ours.named_parameters():
            values = in_our_layout(name, theirs.get_parameter(their_name(name)))
            parameter[: len(values)] = values
    return ours, theirs


def assert_equal_to_ten_digits(ours: Tensor, theirs: Tensor) -> None:
    """The largest difference is at most 1e-10 of the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


def test_logits_loss_and_every_gradient_equal_hugging_faces(subtests: pytest.Subtests) -> None:
    for (name, shape), bias in itertools.product(SHAPES.items(), (True, False)):
        with subtests.test(name, bias=bias):
            ours, theirs = twins(shape, bias=bias)
            rows = torch.randint(shape["vocab_size"], (3, shape["context_length"] + 1))
            results = []
            for logits in (ours(rows[:, :-1]), theirs(rows[:, :-1]).logits):
                loss = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
                loss.backward()
                results.append((logits, loss))
            for got, expected in zip(*results, strict=True):
                assert_equal_to_ten_digits(got, expected)
            for parameter_name, parameter in ours.named_parameters():
                expected = in_our_layout(parameter_name, theirs.get_parameter(their_name(parameter_name)).grad)
                assert parameter.grad is not None
                # the keys' bias adds the same to all scores of a query, so its gradient is 0 up to rounding: qkv as one
                assert_equal_to_ten_digits(parameter.grad[: len(expected)], expected)
            names = {name for name, _ in theirs.named_parameters() if bias or not name.endswith(".bias")}
            assert {their_name(name) for name, _ in ours.named_parameters()} == names


def test_dropout_is_where_gpt2_has_it() -> None:
    shape = SHAPES["odd vocabulary"]
    ours, theirs = twins(shape, bias=True, dropout=0.2)
    inputs = torch.randint(shape["vocab_size"], (3, shape["context_length"]))
    torch.manual_seed(3)
    logits = ours.train()(inputs)
    torch.manual_seed(3)  # the same masks, if as many are drawn, in the same order and shapes
    assert_equal_to_ten_digits(logits, theirs.train()(inputs).logits)
    assert not torch.equal(logits, ours.eval()(inputs))
