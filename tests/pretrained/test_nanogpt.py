"""nanoGPT's ckpt.pt computes here what it computes there; a file that would run code is refused and does not."""

import os
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_nanogpt import logits, random_weights
from saved_models import difference, random_model, tokens

from quillgpt.checkpoint import load_model, open_model
from quillgpt.errors import CheckpointError, DataError
from quillgpt.sample.generate import generate
from quillgpt.tokenizer import train_tokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT

ARGUMENTS = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 65, "bias": False, "dropout": 0.2}


def checkpoint(path: Path, *, prefix: str = "", extra: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Write a ckpt.pt as nanoGPT's train.py does, and return its weights under their plain names."""
    arguments = ARGUMENTS | changes
    weights = random_weights(arguments)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))], lr=1e-3)
    content = {
        "model": {prefix + name: x for name, x in (weights | (extra or {})).items()},
        "optimizer": optimizer.state_dict(),
        "model_args": arguments,
        "iter_num": 5000,
        "best_val_loss": torch.tensor(1.47),
        "config": {"dataset": "shakespeare_char", "learning_rate": 1e-3, "compile": True},
    }
    torch.save(content, path)
    return weights


FORMS: dict[str, dict[str, Any]] = {
    "without bias": {},
    "with bias": {"bias": True},
    "compiled": {"prefix": "_orig_mod."},
    "many ranks": {"prefix": "module."},
    "many ranks, compiled": {"prefix": "module._orig_mod."},
    "compiled, many ranks": {"prefix": "_orig_mod.module."},
    "old, with masks": {"bias": True, "extra": {"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16)}},
    "one head": {"n_head": 1},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_checkpoint_gives_the_logits_of_plain_torch(form: dict[str, Any], tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "ckpt.pt", **form)
    ours, _ = load_model(tmp_path / "ckpt.pt")
    theirs = partial(logits, weights, n_layer=2, n_head=form.get("n_head", 4))
    assert difference(ours, theirs, tokens(16, 65)) < 1e-5
    assert ours.config.dropout == 0.0
    assert ours.config.bias == form.get("bias", False)


def test_the_directory_of_a_checkpoint_stands_for_it(tmp_path: Path) -> None:
    checkpoint(tmp_path / "ckpt.pt")
    assert open_model(tmp_path).name == str(tmp_path / "ckpt.pt")
    assert open_model(tmp_path).fingerprint == open_model(tmp_path / "ckpt.pt").fingerprint


def test_a_vocabulary_of_50304_becomes_gpt2s_with_the_same_logits(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "ckpt.pt", vocab_size=50304, n_embd=8, n_layer=1)
    ours, _ = load_model(tmp_path / "ckpt.pt")

    def theirs(inputs: torch.Tensor) -> torch.Tensor:
        return logits(weights, inputs, n_layer=1, n_head=4)[..., :50257]

    assert difference(ours, theirs, tokens(16, 50257)) < 1e-5
    assert ours.config.vocab_size == 50257
    assert not ours.token_embedding.weight[50257:].any()
    assert open_model(tmp_path).tokenizer_fingerprint == GPT2_FINGERPRINT


def test_gpt2s_tokenizer_reads_and_writes_for_it(tmp_path: Path, gpt2_vocabulary: Path) -> None:
    checkpoint(tmp_path / "ckpt.pt", vocab_size=50304, n_embd=8, n_layer=1)
    model, tokenizer = load_model(tmp_path)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert isinstance(generate(model, tokenizer, "Hello", max_new_tokens=2)[0], str)


def test_a_character_model_loads_and_its_pickled_vocabulary_is_not_read(tmp_path: Path) -> None:
    checkpoint(tmp_path / "ckpt.pt")
    (tmp_path / "meta.pkl").write_bytes(evil_pickle(tmp_path / "marker"))
    model, tokenizer = load_model(tmp_path)
    assert model(tokens(4, 65)).shape == (2, 4, 65)
    with pytest.raises(
        DataError, match=r"65 tokens are not GPT-2's, and nanoGPT's meta\.pkl is a pickle, not read; put"
    ):
        tokenizer.encode("To be")
    assert not (tmp_path / "marker").exists()


def test_a_tokenizer_json_beside_it_is_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("bpe", ["the cat sat on the mat\n" * 20], 260)
    checkpoint(tmp_path / "ckpt.pt", vocab_size=260)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    assert load_model(tmp_path)[1].encode("the cat") == tokenizer.encode("the cat")


class Evil:
    """Its pickle runs a command when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def evil_pickle(marker: Path) -> bytes:
    return pickle.dumps({"model": {}, "model_args": {}, "more": Evil(marker)})


def evil_archive(path: Path, marker: Path) -> None:
    """A file of torch.save whose pickle is another one."""
    torch.save({"model": {}}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, evil_pickle(marker) if name.endswith("data.pkl") else content)


MALICE: dict[str, Callable[[Path, Path], None]] = {
    "beside the weights": lambda path, marker: torch.save({"model": {}, "model_args": {}, "x": Evil(marker)}, path),
    "as a weight": lambda path, marker: torch.save({"model": {"a": Evil(marker)}, "model_args": {}}, path),
    "in place of all": lambda path, marker: torch.save(Evil(marker), path),
    "a plain pickle": lambda path, marker: path.write_bytes(evil_pickle(marker)) and None,
    "in torch's archive": evil_archive,
    "in torch's old format": lambda path, marker: torch.save(
        {"model": {"a": Evil(marker)}}, path, _use_new_zipfile_serialization=False
    ),
}


def loads(path: Path) -> None:
    """What an unguarded reader would do with it."""
    torch.load(path, weights_only=False)


@pytest.mark.parametrize("make", MALICE.values(), ids=MALICE)
@pytest.mark.parametrize("name", ["ckpt.pt", "pytorch_model.bin"])
def test_a_malicious_file_is_refused_on_one_line_and_not_executed(
    make: Callable[[Path, Path], None], name: str, tmp_path: Path
) -> None:
    path, marker = tmp_path / name, tmp_path / "marker"
    make(path, marker)
    if name == "pytorch_model.bin":
        (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1}')
    with pytest.raises(CheckpointError) as raised:
        load_model(tmp_path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not marker.exists()


def test_the_malice_is_real(tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    torch.save({"x": Evil(tmp_path / "marker")}, tmp_path / "x.pt")
    loads(tmp_path / "x.pt")
    assert (tmp_path / "marker").exists()


def saves(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


WEIGHTS = random_weights(ARGUMENTS)
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "not readable as a file of torch.save"),
    "text": (lambda path: path.write_bytes(b"hello world"), "not read"),
    "cut short": (lambda path: (checkpoint(path), path.write_bytes(path.read_bytes()[:-100])), "not read"),
    "a list": (saves([1, 2]), "not a checkpoint of nanoGPT: expected a dict with model and model_args"),
    "bare weights": (saves(WEIGHTS), "not a checkpoint of nanoGPT"),
    "a model that is no dict": (saves({"model": 3, "model_args": ARGUMENTS}), "expected tensors by their names"),
    "a weight that is a list": (
        saves({"model": {"a": [1]}, "model_args": ARGUMENTS}),
        "expected tensors by their names",
    ),
    "arguments missing": (saves({"model": WEIGHTS, "model_args": {"n_layer": 2}}), "model_args has no n_head"),
    "arguments that are no dict": (saves({"model": WEIGHTS, "model_args": [2]}), "model_args has no n_layer"),
    "arguments impossible": (
        saves({"model": WEIGHTS, "model_args": ARGUMENTS | {"n_head": 5}}),
        "n_head = 5 is not poss",
    ),
    "a vocabulary of None": (
        saves({"model": WEIGHTS, "model_args": ARGUMENTS | {"vocab_size": None}}),
        "vocab_size = None",
    ),
    "another shape": (saves({"model": WEIGHTS, "model_args": ARGUMENTS | {"n_embd": 64}}), r"expected \(\d+, 64\)"),
    "biases too many": (
        lambda path: resave(path, **{"transformer.ln_f.bias": torch.zeros(32)}),
        "ln_f.bias, which a mod",
    ),
    "whole numbers": (
        lambda path: resave(path, **{"transformer.ln_f.weight": torch.ones(32).long()}),
        "ln_f.weight is tor",
    ),
    "sparse": (lambda path: resave(path, **{"transformer.ln_f.weight": torch.ones(32).to_sparse()}), "ln_f.weight"),
}


def resave(path: Path, **changes: torch.Tensor) -> None:
    torch.save({"model": WEIGHTS | changes, "model_args": ARGUMENTS}, path)


@pytest.mark.parametrize(("make", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_is_no_checkpoint_is_one_line(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "my.pt"
    make(path)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_model(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_gelu_of_nanogpt_is_not_that_of_gpt2(tmp_path: Path) -> None:
    """The two forms differ by more than rounding, so that the tests here can tell them apart."""
    weights = checkpoint(tmp_path / "ckpt.pt", bias=True)
    exact, _ = load_model(tmp_path)
    theirs = random_model(n_layer=2, n_head=4, n_embd=32, n_positions=16, vocab_size=65)
    state = {
        name: x.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else x
        for name, x in weights.items()
    }
    theirs.load_state_dict(state)
    assert difference(exact, theirs, tokens(16, 65)) > 1e-5
