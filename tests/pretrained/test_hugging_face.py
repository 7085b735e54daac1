"""A model that `transformers` saved gives the same logits here, whatever its size and file format."""

import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from saved_models import SMALL, difference, random_model, tokens
from transformers import GPT2Config, GPT2LMHeadModel

from quillgpt.checkpoint import load_model, open_model
from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import SIZES
from quillgpt.pretrained.hugging_face import HUGGING_FACE, TRANSPOSED, to_hugging_face

Save = Callable[..., tuple[GPT2LMHeadModel, Path]]
Tensors = dict[str, torch.Tensor]
TOLERANCE = 1e-5
"""of the largest logit, in fp32"""
NAMES_PAGE = Path(__file__).parents[2] / "docs" / "names.md"


def test_every_weight_has_the_name_and_shape_of_transformers() -> None:
    with torch.device("meta"):
        ours = GPT(ModelConfig(n_layer=11, n_head=2, n_embd=8, vocab_size=64, context_length=5, tied_head=False))
        config = GPT2Config(n_layer=11, n_head=2, n_embd=8, vocab_size=64, n_positions=5, tie_word_embeddings=False)
        theirs = dict(GPT2LMHeadModel(config).named_parameters())
    names = [to_hugging_face(name)[0] for name, _ in ours.named_parameters()]
    assert sorted(names) == sorted(theirs)
    for name, parameter in ours.named_parameters():
        their_name, is_transposed = to_hugging_face(name)
        assert theirs[their_name].shape == (parameter.T if is_transposed else parameter).shape, name
    for name in ("blocks.0.mlp.gate.weight", "blocks.weight", "wte.weight"):
        with pytest.raises(KeyError):
            to_hugging_face(name)


def test_the_page_of_names_is_the_table() -> None:
    seen = set()
    for line in NAMES_PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        name = cells[0].split("`")[1] if cells and cells[0].startswith("`") else ""
        module, _, kind = name.rpartition(".")
        if module not in HUGGING_FACE or len(cells) != 6 or not cells[3]:
            continue  # a row of another table, or of a weight they do not have
        seen.add(module)
        assert cells[3].split("`")[1] == f"{HUGGING_FACE[module]}.{kind}".removeprefix("transformer."), name
        assert (cells[5] == "T") == name.endswith(TRANSPOSED), name
    assert seen == set(HUGGING_FACE)


def kilobytes(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def loaded_with_peak(directory: str) -> tuple[GPT, float]:
    """The model, and the growth of the process's peak memory, mapped pages included, over the bytes of the weights."""
    peak = Path("/proc/self/clear_refs")
    if not peak.exists():  # this system does not measure it
        return load_model(directory)[0], 1.0
    peak.write_text("5")  # forget the former peak
    before = kilobytes("VmRSS")
    ours, _ = load_model(directory)
    return ours, (kilobytes("VmHWM") - before) * 1024 / sum(4 * parameter.numel() for parameter in ours.parameters())


def test_published_sizes_give_the_logits_of_transformers_and_take_only_their_memory() -> None:
    """124M in full and from two dtypes, the others one layer deep with a small vocabulary."""
    for name, size in SIZES.items():
        is_full = name == "gpt2"
        layers, vocabulary = (size.n_layer, size.vocab_size) if is_full else (1, 301)
        theirs = random_model(n_layer=layers, n_head=size.n_head, n_embd=size.n_embd, vocab_size=vocabulary)
        inputs = tokens(6, vocabulary)[:1]
        expected = theirs(inputs).logits
        for dtype, tolerance in ((torch.float32, TOLERANCE), (torch.float16, 1e-2))[: 1 + is_full]:
            with tempfile.TemporaryDirectory() as directory:  # half a gigabyte, which pytest would keep
                theirs.to(dtype).save_pretrained(directory)
                ours, growth = loaded_with_peak(directory)
            assert difference(ours, lambda _, expected=expected: expected, inputs) < tolerance, name
            assert not is_full or 0.5 < growth < 1.2, (dtype, growth)
            assert not ours.training
            assert all(x.dtype == torch.float32 and x.requires_grad for x in ours.parameters())


def rewrite(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Change the tensors of a model.safetensors."""
    path = directory / "model.safetensors"
    changed = change(safetensors.torch.load_file(path))
    safetensors.torch.save_file({name: x.contiguous() for name, x in changed.items()}, path)


def as_in_2019(tensors: Tensors) -> Tensors:
    """OpenAI's file on the hub: no prefix, and the causal masks among the weights."""
    masks = {}
    for layer in range(SMALL["n_layer"]):
        masks[f"h.{layer}.attn.bias"] = torch.ones(32, 32).tril().view(1, 1, 32, 32)
        masks[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return {name.removeprefix("transformer."): x for name, x in tensors.items()} | masks


FORMS: dict[str, tuple[dict[str, Any], Callable[[Tensors], Tensors] | None]] = {
    "as saved": ({}, None),
    "shards": ({"shards": "50KB"}, None),
    "untied head": ({"tie_word_embeddings": False}, None),
    "untied head in shards": ({"tie_word_embeddings": False, "shards": "50KB"}, None),
    "exact gelu": ({"activation_function": "gelu"}, None),
    "pytorch's tanh gelu": ({"activation_function": "gelu_pytorch_tanh"}, None),
    "explicit inner width": ({"n_inner": 4 * SMALL["n_embd"]}, None),
    "upcast attention": ({"reorder_and_upcast_attn": True}, None),
    "another vocabulary": ({"vocab_size": 320}, None),
    "one head": ({"n_head": 1}, None),
    "old file": ({}, as_in_2019),
    "masks as bytes": ({}, lambda tensors: tensors | {"transformer.h.0.attn.bias": torch.ones(4, dtype=torch.uint8)}),
    "copy of the tied head": (
        {},
        lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()},
    ),
}


def test_every_form_of_directory_gives_the_logits_of_transformers(saved: Save) -> None:
    for name, (changes, change) in FORMS.items():
        theirs, directory = saved(**changes)
        if change is not None:
            rewrite(directory, change)
        assert difference(load_model(directory)[0], theirs, tokens(32)) < TOLERANCE, name
    theirs, directory = saved()
    (directory / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), directory / "pytorch_model.bin")
    assert difference(load_model(directory)[0], theirs, tokens(32)) < TOLERANCE


def test_weights_of_another_precision_become_fp32(saved: Save) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        theirs, directory = saved()
        rewrite(directory, lambda tensors, dtype=dtype: {name: x.to(dtype) for name, x in tensors.items()})
        ours, _ = load_model(directory)
        assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
        assert difference(ours, theirs.to(dtype).float(), tokens(32)) < TOLERANCE, dtype


def test_the_settings_are_theirs_without_dropout(saved: Save) -> None:
    config = open_model(saved(tie_word_embeddings=False)[1]).config
    expected = ModelConfig(n_layer=2, n_head=4, n_embd=64, context_length=32, vocab_size=301, tied_head=False)
    assert config == dataclasses.replace(expected, dropout=0.0)
    assert (config.mlp, config.bias, config.position) == ("gelu", True, "learned")


def test_the_rows_of_the_padding_are_zeros_without_logits(saved: Save) -> None:
    ours, _ = load_model(saved(tie_word_embeddings=False)[1])
    assert ours.head is not None
    for table in (ours.token_embedding.weight, ours.head.weight):
        assert table.shape == (320, 64)
        assert not table[301:].any()
        assert table[300].any()
    assert ours(tokens(4)).shape[-1] == 301


def test_a_shorter_context_takes_the_first_positions(saved: Save) -> None:
    theirs, directory = saved()
    source = open_model(directory)
    ours = GPT(dataclasses.replace(source.config, context_length=5, dropout=0.3)).eval()
    source.load_into(ours)
    assert difference(ours, theirs, tokens(5)) < TOLERANCE


def test_the_fingerprint_is_that_of_the_file(saved: Save) -> None:
    _, directory = saved()
    before = open_model(directory).fingerprint
    assert before == hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    rewrite(directory, lambda tensors: tensors | {"transformer.ln_f.bias": tensors["transformer.ln_f.bias"] + 1})
    assert open_model(directory).fingerprint != before


def refused(directory: Path, message: str) -> list[str]:
    """The error of loading, unless it is one line that names the directory and matches."""
    with pytest.raises(CheckpointError) as raised:
        load_model(directory)
    found = str(raised.value)
    is_right = str(directory) in found and "\n" not in found and re.search(message, found)
    return [] if is_right else [f"{found}, not {message}"]


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "llama"}, r"model_type = 'llama'; expected 'gpt2'"),
    ({"activation_function": "relu"}, r"activation_function = 'relu' .*expected 'gelu_new' or 'gelu'"),
    ({"activation_function": ["gelu"]}, r"activation_function = \['gelu'\]"),
    ({"n_inner": 100}, r"n_inner = 100 .*expected 256 or None"),
    ({"scale_attn_weights": False}, r"scale_attn_weights = False .*expected True"),
    ({"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx = True .*expected False"),
    ({"add_cross_attention": True}, r"add_cross_attention = True .*expected False"),
    ({"layer_norm_epsilon": 1e-6}, r"layer_norm_epsilon = 1e-06 .*expected 1e-05"),
    ({"n_head": 5}, r"invalid n_head: 5 .must be a divisor of n_embd"),
    ({"n_embd": "64"}, r"invalid n_embd: '64'"),
    ({"vocab_size": 0}, r"invalid vocab_size: 0"),
    ({"n_embd": 128}, r"has the shape \(\d+, 64\); expected \(\d+, 128\)"),
    ({"n_layer": 3}, r"no tensor transformer\.h\.2\."),
    ({"n_layer": 1}, r"a tensor transformer\.h\.1\..*does not have"),
    ({"n_positions": 33}, r"wpe.weight has the shape \(32, 64\); expected \(33, 64\)"),
    ({"vocab_size": 302}, r"wte.weight has the shape \(301, 64\); expected \(302, 64\)"),
    ({"tie_word_embeddings": False}, r"no tensor lm_head.weight"),
]


def test_a_config_that_cannot_be_represented_is_refused_by_its_key(saved: Save) -> None:
    _, directory = saved()
    path, wrong = directory / "config.json", []
    original = json.loads(path.read_text())
    for changes, message in CONFIGS:
        path.write_text(json.dumps(original | changes))
        wrong += refused(directory, message)
    assert wrong == []


CHANGED_TENSORS: list[tuple[str, torch.Tensor | None, str]] = [
    ("transformer.h.1.mlp.c_fc.bias", None, "no tensor transformer.h.1.mlp.c_fc.bias"),
    ("transformer.h.0.adapter", torch.ones(2), "a tensor transformer.h.0.adapter, "),
    ("transformer.ln_f.bias", torch.ones(63), r"ln_f.bias has the shape \(63,\); expected \(64,\)"),
    ("transformer.h.0.mlp.c_fc.weight", torch.ones(256, 64), r"shape \(256, 64\); expected \(64, 256\)"),
    ("transformer.ln_f.bias", torch.ones(64, dtype=torch.int32), "ln_f.bias has dtype I32"),
]
CONTENTS: list[tuple[str, bytes, str]] = [
    ("model.safetensors", b"hello", "not readable as safetensors"),
    ("model.safetensors", b"", "not readable as safetensors"),
    ("config.json", b"{", "config.json: not JSON"),
    ("config.json", b"\xff", "config.json: not JSON"),
    ("config.json", b"[]", "config.json: model_type = 'list'"),
]
INDEXES = [
    ("[]", "index.json: damaged"),
    ('{"weight_map": {"a": "../a"}}', r"names '\.\./a'"),
    ('{"weight_map": {"a": "b"}}', "b: not readable as safetensors"),
]


def test_a_damaged_directory_is_refused(saved: Save) -> None:
    _, directory = saved()
    files, wrong = {name: (directory / name).read_bytes() for name in ("model.safetensors", "config.json")}, []

    def restore() -> Path:
        for name, content in files.items():
            (directory / name).write_bytes(content)
        return directory

    for name, x, message in CHANGED_TENSORS:
        rewrite(
            restore(), lambda tensors, name=name, x=x: {k: y for k, y in (tensors | {name: x}).items() if y is not None}
        )
        wrong += refused(directory, message)
    for name, content, message in [
        *CONTENTS,
        ("model.safetensors", files["model.safetensors"][:-1], "not readable as s"),
    ]:
        (restore() / name).write_bytes(content)
        wrong += refused(directory, message)
    (restore() / "model.safetensors").unlink()
    wrong += refused(directory, "no weights there; expected model.safetensors")
    for content, message in INDEXES:
        (directory / "model.safetensors.index.json").write_text(content)
        wrong += refused(directory, message)
    assert wrong == []


def test_nothing_is_written_into_a_model_that_does_not_fit(saved: Save) -> None:
    _, directory = saved()
    rewrite(directory, lambda tensors: tensors | {"transformer.ln_f.bias": torch.ones(63)})
    source = open_model(directory)
    ours = GPT(source.config)
    before = {name: parameter.clone() for name, parameter in ours.named_parameters()}
    with pytest.raises(CheckpointError, match=r"ln_f\.bias"):
        source.load_into(ours)
    assert all(torch.equal(parameter, before[name]) for name, parameter in ours.named_parameters())
