"""A model that `transformers` saved gives the same logits here, whatever its size and file format."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from saved_models import SMALL, difference, random_model, tokens
from transformers import GPT2LMHeadModel

from quillgpt.checkpoint import load_model, open_model
from quillgpt.errors import CheckpointError
from quillgpt.model.sizes import SIZES

Save = Callable[..., tuple[GPT2LMHeadModel, Path]]
CLOSE = 1e-5
"""of the largest logit, in fp32"""


@pytest.mark.parametrize("name", SIZES)
def test_every_published_size_gives_the_logits_of_transformers(name: str) -> None:
    """124M in full, the others two layers deep."""
    size = SIZES[name]
    layers = size.n_layer if name == "gpt2" else 2
    theirs = random_model(n_layer=layers, n_head=size.n_head, n_embd=size.n_embd)
    with tempfile.TemporaryDirectory() as directory:  # half a gigabyte, which pytest would keep
        theirs.save_pretrained(directory)
        ours, _ = load_model(directory)
    assert difference(ours, theirs, tokens(6, size.vocab_size)[:1]) < CLOSE
    assert not ours.training
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in ours.parameters())


VARIANTS: dict[str, dict[str, Any]] = {
    "as saved": {},
    "shards": {"shards": "50KB"},
    "head of its own": {"tie_word_embeddings": False},
    "head of its own in shards": {"tie_word_embeddings": False, "shards": "50KB"},
    "exact gelu": {"activation_function": "gelu"},
    "pytorch's tanh gelu": {"activation_function": "gelu_pytorch_tanh"},
    "inner width spelt out": {"n_inner": 4 * SMALL["n_embd"]},
    "upcast attention": {"reorder_and_upcast_attn": True},
    "another vocabulary": {"vocab_size": 320},
    "one head": {"n_head": 1},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_form_of_directory_gives_the_logits_of_transformers(saved: Save, changes: dict[str, Any]) -> None:
    theirs, directory = saved(**changes)
    ours, _ = load_model(directory)
    assert difference(ours, theirs, tokens(32)) < CLOSE


def test_the_settings_are_theirs_and_dropout_is_left_to_training(saved: Save) -> None:
    _, directory = saved(tie_word_embeddings=False)
    config = open_model(directory).config
    shape = (config.n_layer, config.n_head, config.n_embd, config.context_length, config.vocab_size)
    assert shape == (2, 4, 64, 32, 301)
    assert (config.mlp, config.tied_head, config.bias, config.position, config.dropout) == (
        "gelu",
        False,
        True,
        "learned",
        0.0,
    )


def rewritten(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = directory / "model.safetensors"
    safetensors.torch.save_file(
        {name: x.contiguous() for name, x in change(safetensors.torch.load_file(path)).items()}, path
    )


def as_in_2019(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's file on the hub: no prefix, and the causal masks among the weights."""
    masks = {}
    for layer in range(SMALL["n_layer"]):
        masks[f"h.{layer}.attn.bias"] = torch.ones(32, 32).tril().view(1, 1, 32, 32)
        masks[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return {name.removeprefix("transformer."): x for name, x in tensors.items()} | masks


OLD: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "without prefix, with masks": as_in_2019,
    "with masks as bytes": lambda tensors: tensors | {"transformer.h.0.attn.bias": torch.ones(4, dtype=torch.uint8)},
    "the tied head written out": lambda tensors: (
        tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    ),
}


@pytest.mark.parametrize("change", OLD.values(), ids=OLD)
def test_old_files_load(saved: Save, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    theirs, directory = saved()
    rewritten(directory, change)
    ours, _ = load_model(directory)
    assert difference(ours, theirs, tokens(32)) < CLOSE


def test_a_file_of_torch_loads(saved: Save) -> None:
    theirs, directory = saved()
    (directory / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), directory / "pytorch_model.bin")
    ours, _ = load_model(directory)
    assert difference(ours, theirs, tokens(32)) < CLOSE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_fp32(saved: Save, dtype: torch.dtype) -> None:
    theirs, directory = saved()
    rewritten(directory, lambda tensors: {name: x.to(dtype) for name, x in tensors.items()})
    ours, _ = load_model(directory)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert difference(ours, theirs.to(dtype).float(), tokens(32)) < CLOSE


def test_the_rows_of_the_padding_are_zeros_and_never_scored(saved: Save) -> None:
    _, directory = saved(tie_word_embeddings=False)
    ours, _ = load_model(directory)
    assert ours.head is not None
    for table in (ours.token_embedding.weight, ours.head.weight):
        assert table.shape == (320, 64)
        assert not table[301:].any()
        assert table[300].any()
    assert ours(tokens(4)).shape[-1] == 301


def test_a_shorter_context_takes_the_first_positions(saved: Save) -> None:
    import dataclasses

    from quillgpt.model.gpt import GPT

    theirs, directory = saved()
    source = open_model(directory)
    ours = GPT(dataclasses.replace(source.config, context_length=5, dropout=0.3)).eval()
    source.load_into(ours)
    assert difference(ours, theirs, tokens(5)) < CLOSE


def test_the_fingerprint_is_that_of_the_file_and_changes_with_it(saved: Save) -> None:
    import hashlib

    _, directory = saved()
    before = open_model(directory).fingerprint
    assert before == hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    rewritten(directory, lambda tensors: tensors | {"transformer.ln_f.bias": tensors["transformer.ln_f.bias"] + 1})
    assert open_model(directory).fingerprint != before


def config_with(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model_type": ({"model_type": "llama"}, r"model_type = 'llama'; expected 'gpt2'"),
    "activation": ({"activation_function": "relu"}, r"activation_function = 'relu' .*expected one of gelu_new, "),
    "activation of another type": ({"activation_function": ["gelu"]}, r"activation_function = \['gelu'\]"),
    "n_inner": ({"n_inner": 100}, r"n_inner = 100 .*expected 4 \* n_embd = 256"),
    "scale": ({"scale_attn_weights": False}, r"scale_attn_weights = False .*expected True"),
    "layer scale": (
        {"scale_attn_by_inverse_layer_idx": True},
        r"scale_attn_by_inverse_layer_idx = True .*expected False",
    ),
    "cross attention": ({"add_cross_attention": True}, r"add_cross_attention = True .*expected False"),
    "epsilon": ({"layer_norm_epsilon": 1e-6}, r"layer_norm_epsilon = 1e-06 .*expected 1e-05"),
    "heads": ({"n_head": 5}, r"n_head = 5 is not possible: expected a divisor of n_embd"),
    "a width that is text": ({"n_embd": "64"}, r"n_embd = '64'"),
    "a vocabulary of 0": ({"vocab_size": 0}, r"vocab_size = 0"),
    "another width": ({"n_embd": 128}, r"has the shape \(\d+, 64\); expected \(\d+, 128\)"),
    "more layers": ({"n_layer": 3}, r"no tensor transformer\.h\.2\."),
    "fewer layers": ({"n_layer": 1}, r"a tensor transformer\.h\.1\..*does not have"),
    "more positions": ({"n_positions": 33}, r"wpe.weight has the shape \(32, 64\); expected \(33, 64\)"),
    "more tokens": ({"vocab_size": 302}, r"wte.weight has the shape \(301, 64\); expected \(302, 64\)"),
    "a head that is not there": ({"tie_word_embeddings": False}, r"no tensor lm_head.weight"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_represented_is_refused_by_its_key(saved: Save, changes: dict[str, Any], message: str) -> None:
    _, directory = saved()
    config_with(directory, **changes)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_model(directory)
    assert str(directory) in str(raised.value)
    assert "\n" not in str(raised.value)


def drop(name: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        rewritten(directory, lambda tensors: {key: x for key, x in tensors.items() if key != name})

    return damage


def add(name: str, x: torch.Tensor) -> Callable[[Path], None]:
    return lambda directory: rewritten(directory, lambda tensors: tensors | {name: x})


def replace(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content) and None


def cut(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def remove_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def an_index(content: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        remove_weights(directory)
        (directory / "model.safetensors.index.json").write_text(content)

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a tensor missing": (drop("transformer.h.1.mlp.c_fc.bias"), "no tensor transformer.h.1.mlp.c_fc.bias"),
    "a tensor too many": (add("transformer.h.0.adapter", torch.ones(2)), "a tensor transformer.h.0.adapter, "),
    "another shape": (
        add("transformer.ln_f.bias", torch.ones(63)),
        r"ln_f.bias has the shape \(63,\); expected \(64,\)",
    ),
    "transposed": (
        add("transformer.h.0.mlp.c_fc.weight", torch.ones(256, 64)),
        r"shape \(256, 64\); expected \(64, 256\)",
    ),
    "integers": (add("transformer.ln_f.bias", torch.ones(64, dtype=torch.int32)), "ln_f.bias has dtype I32"),
    "one byte short": (cut, "not readable as safetensors"),
    "no safetensors at all": (replace("model.safetensors", b"hello"), "not readable as safetensors"),
    "an empty file": (replace("model.safetensors", b""), "not readable as safetensors"),
    "no weights": (remove_weights, "no weights there; expected model.safetensors"),
    "config not JSON": (replace("config.json", b"{"), "config.json: not JSON"),
    "config not UTF-8": (replace("config.json", b"\xff"), "config.json: not JSON"),
    "config a list": (replace("config.json", b"[]"), "config.json: model_type = 'list'"),
    "an index that is none": (an_index("[]"), "index.json: damaged"),
    "an index out of the directory": (an_index('{"weight_map": {"a": "../a"}}'), r"names '\.\./a'"),
    "an index of a missing file": (an_index('{"weight_map": {"a": "b"}}'), "b: not readable as safetensors"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_directory_is_one_line(saved: Save, damage: Callable[[Path], None], message: str) -> None:
    _, directory = saved()
    damage(directory)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_model(directory)
    assert str(directory) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nothing_is_written_into_a_model_that_does_not_fit(saved: Save) -> None:
    from quillgpt.model.gpt import GPT

    _, directory = saved()
    rewritten(directory, lambda tensors: tensors | {"transformer.ln_f.bias": torch.ones(63)})
    source = open_model(directory)
    ours = GPT(source.config)
    before = {name: parameter.clone() for name, parameter in ours.named_parameters()}
    with pytest.raises(CheckpointError, match=r"ln_f\.bias"):
        source.load_into(ours)
    assert all(torch.equal(parameter, before[name]) for name, parameter in ours.named_parameters())
