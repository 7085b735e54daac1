"""nanoGPT's ckpt.pt gives the logits that it gives there; a file that would run code is refused and does not run it."""

import os
import pickle
import re
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
from quillgpt.sample.engine import generate
from quillgpt.tokenizer import train_tokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT

ARGUMENTS = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 65, "bias": False, "dropout": 0.2}
PADDED = {"vocab_size": 50304, "n_embd": 8, "n_layer": 1}
TOLERANCE = 1e-5


def write_checkpoint(
    path: Path, *, prefix: str = "", extra: dict[str, Any] | None = None, **changes: Any
) -> dict[str, torch.Tensor]:
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
    "DDP": {"prefix": "module."},
    "DDP, compiled": {"prefix": "module._orig_mod."},
    "compiled, DDP": {"prefix": "_orig_mod.module."},
    "old, with masks": {"bias": True, "extra": {"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16)}},
    "one head": {"n_head": 1},
}


def test_every_form_of_checkpoint_gives_the_logits_of_plain_torch(tmp_path: Path) -> None:
    for name, form in FORMS.items():
        weights = write_checkpoint(tmp_path / "ckpt.pt", **form)
        ours, _ = load_model(tmp_path / "ckpt.pt")
        theirs = partial(logits, weights, n_layer=2, n_head=form.get("n_head", 4))
        assert difference(ours, theirs, tokens(16, 65)) < TOLERANCE, name
        assert (ours.config.dropout, ours.config.bias) == (0.0, form.get("bias", False))
    assert open_model(tmp_path).name == str(tmp_path / "ckpt.pt")
    assert open_model(tmp_path).fingerprint == open_model(tmp_path / "ckpt.pt").fingerprint


def test_the_gelu_of_nanogpt_is_not_that_of_gpt2(tmp_path: Path) -> None:
    """The two forms differ by more than the tolerance, so that the test above can distinguish them."""
    weights = write_checkpoint(tmp_path / "ckpt.pt", bias=True)
    theirs = random_model(n_layer=2, n_head=4, n_embd=32, n_positions=16, vocab_size=65)
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    theirs.load_state_dict({name: x.T if name.endswith(linear) else x for name, x in weights.items()})
    assert difference(load_model(tmp_path)[0], theirs, tokens(16, 65)) > TOLERANCE


def test_a_vocabulary_of_50304_becomes_gpt2s_with_the_same_logits(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "ckpt.pt", **PADDED)
    ours, _ = load_model(tmp_path / "ckpt.pt")

    def theirs(inputs: torch.Tensor) -> torch.Tensor:
        return logits(weights, inputs, n_layer=1, n_head=4)[..., :50257]

    assert difference(ours, theirs, tokens(16, 50257)) < TOLERANCE
    assert ours.config.vocab_size == 50257
    assert not ours.token_embedding.weight[50257:].any()
    assert open_model(tmp_path).tokenizer_fingerprint == GPT2_FINGERPRINT


def test_it_reads_and_writes_gpt2s_tokens(tmp_path: Path, gpt2_vocabulary: Path) -> None:
    write_checkpoint(tmp_path / "ckpt.pt", **PADDED)
    model, tokenizer = load_model(tmp_path)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert isinstance(generate(model, tokenizer, "Hello", max_new_tokens=2)[0], str)


def test_the_tokenizer_is_a_tokenizer_json_and_never_a_pickle(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ckpt.pt")
    (tmp_path / "meta.pkl").write_bytes(evil_pickle(tmp_path / "marker"))
    model, tokenizer = load_model(tmp_path)
    assert model(tokens(4, 65)).shape == (2, 4, 65)
    expected = (
        r"no tokenizer there \(nanoGPT's meta\.pkl is a pickle, not read\), and a vocabulary of 65 is not GPT-2's; put"
    )
    with pytest.raises(DataError, match=expected):
        tokenizer.encode("To be")
    assert not (tmp_path / "marker").exists()
    trained = train_tokenizer("bpe", ["the cat sat on the mat\n" * 20], 260)
    write_checkpoint(tmp_path / "ckpt.pt", vocab_size=260)
    (tmp_path / "tokenizer.json").write_text(trained.to_json())
    assert load_model(tmp_path)[1].encode("the cat") == trained.encode("the cat")


class Evil:
    """Its pickle runs a command when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def evil_pickle(marker: Path) -> bytes:
    return pickle.dumps({"model": {}, "model_args": {}, "more": Evil(marker)})


def evil_archive(path: Path, marker: Path) -> None:
    """A file of torch.save whose pickle is replaced."""
    torch.save({"model": {}}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, evil_pickle(marker) if name.endswith("data.pkl") else content)


MALICE: dict[str, Callable[[Path, Path], object]] = {
    "next to the weights": lambda path, marker: torch.save({"model": {}, "model_args": {}, "x": Evil(marker)}, path),
    "as a weight": lambda path, marker: torch.save({"model": {"a": Evil(marker)}, "model_args": {}}, path),
    "instead of all": lambda path, marker: torch.save(Evil(marker), path),
    "a plain pickle": lambda path, marker: path.write_bytes(evil_pickle(marker)),
    "in torch's archive": evil_archive,
    "in torch's old format": lambda path, marker: torch.save(
        {"model": {"a": Evil(marker)}}, path, _use_new_zipfile_serialization=False
    ),
}


def refused(path: Path, where: Path, message: str = "") -> list[str]:
    """The error of loading, unless it is one line that names the file and matches."""
    with pytest.raises(CheckpointError) as raised:
        load_model(where)
    found = str(raised.value)
    is_right = str(path) in found and "\n" not in found and re.search(message, found)
    return [] if is_right else [f"{found}, not {message}"]


def test_a_malicious_file_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"x": Evil(tmp_path / "marker")}, tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "marker").exists()  # the malice is real
    (tmp_path / "marker").unlink()
    wrong = []
    for name in ("ckpt.pt", "pytorch_model.bin"):
        directory = tmp_path / name.partition(".")[0]
        directory.mkdir()
        if name == "pytorch_model.bin":
            (directory / "config.json").write_text('{"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1}')
        for make in MALICE.values():
            make(directory / name, tmp_path / "marker")
            wrong += refused(directory / name, directory)
            assert not (tmp_path / "marker").exists()
    assert wrong == []


WEIGHTS = random_weights(ARGUMENTS)


def saved(content: Any) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


def with_arguments(arguments: Any) -> Callable[[Path], object]:
    return saved({"model": WEIGHTS, "model_args": arguments})


def with_weight(name: str, x: torch.Tensor) -> Callable[[Path], object]:
    return saved({"model": WEIGHTS | {name: x}, "model_args": ARGUMENTS})


def cut_short(path: Path) -> None:
    write_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.write_bytes(b""), "not readable as a file of torch.save"),
    (lambda path: path.write_bytes(b"hello world"), "not read"),
    (cut_short, "not read"),
    (saved([1, 2]), "not a checkpoint of nanoGPT: expected a dict with model and model_args"),
    (saved(WEIGHTS), "not a checkpoint of nanoGPT"),
    (saved({"model": 3, "model_args": ARGUMENTS}), "expected tensors by their names"),
    (saved({"model": {"a": [1]}, "model_args": ARGUMENTS}), "expected tensors by their names"),
    (with_arguments({"n_layer": 2}), "model_args has no n_head"),
    (with_arguments([2]), "model_args has no n_layer"),
    (with_arguments(ARGUMENTS | {"n_head": 5}), r"model_args: invalid n_head: 5 \("),
    (with_arguments(ARGUMENTS | {"vocab_size": None}), "invalid vocab_size: None"),
    (with_arguments(ARGUMENTS | {"n_embd": 64}), r"expected \(\d+, 64\)"),
    (with_weight("transformer.ln_f.bias", torch.zeros(32)), "ln_f.bias, which a model"),
    (with_weight("transformer.ln_f.weight", torch.ones(32).long()), "ln_f.weight is torch.int64"),
    (with_weight("transformer.ln_f.weight", torch.ones(32).to_sparse()), "ln_f.weight is torch.float32, torch.sparse"),
]


def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path, wrong = tmp_path / "my.pt", []
    for make, message in DAMAGE:
        make(path)
        wrong += refused(path, path, message)
    assert wrong == []
