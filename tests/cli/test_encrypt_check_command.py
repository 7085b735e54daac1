"""`quill encrypt-check` as it is typed: once with secure parameters, then with fast ones; one line a mistake."""

import dataclasses
import json
import sys

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.cli import main as command_line
from quillgpt.cli.encrypt_check import TOLERANCE
from quillgpt.config import ModelConfig
from quillgpt.encryption import check
from quillgpt.encryption.ckks import Parameters
from quillgpt.model.gpt import GPT
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import load_tokenizer


def save_run(path, **settings):
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 64, "vocab_size": 257}
    model = GPT(ModelConfig(**shape | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    checkpoint.save(
        RunDirectory(path),
        step=1,
        model=model,
        optimizer_state={"step": torch.ones(1)},
        state={},
        resolved={},
        config_toml="",
        tokenizer=load_tokenizer("byte"),
        data_fingerprint="none",
        held_out_loss=None,
    )


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A folder with a run of polynomial attention, where the command is typed."""
    save_run(tmp_path / "runs" / "poly", attention="gaussian-poly-4", mlp="square")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fast(monkeypatch):
    """Small rings, which are not secure."""

    def parameters(config, kernel, positions):
        depth = check.needed_depth(config, kernel)
        return Parameters(ring=1024, scale_bits=45, depth=depth, security_bits=0)

    monkeypatch.setattr(check, "fitting_parameters", parameters)


def quill(monkeypatch, capsys, *arguments):
    """The exit code, standard output and standard error of the whole command."""
    monkeypatch.setattr(sys, "argv", ["quill", "encrypt-check", *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    written = capsys.readouterr()
    return stopped.value.code, written.out, written.err


def test_a_head_passes_with_secure_parameters(monkeypatch, capsys):
    code, out, _ = quill(monkeypatch, capsys, "runs/poly", "--layer", "1", "--head", "1", "--json")
    found = json.loads(out)
    head, survey = found["head"], found["survey"]

    assert code == 0
    assert head["parameters"] == {"ring": 16384, "scale_bits": 50, "depth": 6, "security_bits": 128}
    assert head["depth"] == 6
    assert 0 < head["relative_difference"] < TOLERANCE / 100
    assert head["layout"]["positions"] == 8
    assert head["starts_after"] == "norm"
    assert survey["not_polynomial"] == ["norm: layernorm"]
    assert survey["levels"] == 19


def test_the_tables_say_what_was_computed(monkeypatch, capsys, fast):
    code, out, err = quill(monkeypatch, capsys, "-p", "abcdefghijkl", "--length", "9")
    assert (code, err) == (0, "")
    for words in (
        "runs/poly: head 0 of layer 0, gaussian-poly-4",
        "9 tokens: 'abcdefghi'",
        "the normalised residual stream, 9 x 32",
        "6 levels, counted on the ciphertexts",
        "within 1e-04",
        "norm: layernorm",
        "left to the client: the table of token embeddings, positions, choosing the next token",
    ):
        assert words in out
    assert max(map(len, out.splitlines())) <= 120
    assert "\x1b" not in out


def test_a_difference_above_the_tolerance_ends_with_its_own_code_after_the_tables(monkeypatch, capsys, fast):
    code, out, err = quill(monkeypatch, capsys, "runs/poly", "--tolerance", "1e-12")
    assert code == 76
    assert "above 1e-12" in out
    assert err.startswith("quill: runs/poly: the encrypted head differs from the clear one by ")
    assert err.count("\n") == 1


def test_a_wrong_circuit_ends_with_that_code_too(monkeypatch, capsys, fast):
    right = check.attend

    def forgetful(server, layout, inputs, kernel):
        """Keys in place of values."""
        return right(server, layout, dataclasses.replace(inputs, value=inputs.key), kernel)

    monkeypatch.setattr(check, "attend", forgetful)
    assert quill(monkeypatch, capsys, "runs/poly")[0] == 76


def test_qk_norm_begins_behind_it_and_says_so(monkeypatch, capsys, workplace, fast):
    save_run(workplace / "runs" / "normed", attention="gaussian-poly-4", qk_norm=True, position="rotary")
    code, out, _ = quill(monkeypatch, capsys, "runs/normed")
    assert code == 0
    assert "queries, keys and values, each 8 x 16, behind qk_norm" in out
    assert "5 levels, counted" in out
    assert "\nqk_norm " in out


def test_any_model_can_be_surveyed(monkeypatch, capsys, workplace):
    save_run(workplace / "runs" / "plain", n_layer=1)
    code, out, _ = quill(monkeypatch, capsys, "runs/plain", "--survey")
    assert code == 0
    assert "one head, encrypted" not in out
    for name in ("norm: layernorm", "attention: softmax", "activation: gelu", "exp x: degree", "1/x: degree"):
        assert name in out


MISTAKES = [
    (["runs/plain"], 2, "attention = softmax is not a polynomial"),
    (["runs/plain"], 2, "or list this one's parts with --survey"),
    (["runs/poly", "--layer", "2"], 2, "layer = 2 is not possible: expected 0 to 1"),
    (["runs/poly", "--head=-1"], 2, "head = -1 is not possible: expected 0 to 1"),
    (["runs/poly", "--length", "0"], 2, "length = 0 is not possible: expected at least 1"),
    (["runs/poly", "--length", "65"], 2, "length = 65 is not possible: expected at most context_length = 64"),
    (["runs/poly", "-p", "abc"], 2, "length = 8 is not possible: expected at most the prompt's 3 tokens"),
    (["runs/poly", "--tolerance", "0"], 2, "tolerance = 0.0 is not possible"),
    (["runs/poly", "--tolerance", "nan"], 2, "tolerance = nan is not possible"),
    (["runs/poly", "--lenght", "9"], 2, "did you mean --length?"),
    (["runs/nothing"], 65, "runs/nothing"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_one_line(monkeypatch, capsys, workplace, arguments, code, words):
    save_run(workplace / "runs" / "plain", n_layer=1)
    stopped, out, err = quill(monkeypatch, capsys, *arguments)
    assert (stopped, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1


def test_without_the_extra_no_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tenseal", None)
    monkeypatch.setattr(checkpoint, "load_model", None)
    code, _, err = quill(monkeypatch, capsys, "runs/poly")
    assert code == 2
    assert err == "quill: encryption needs tenseal, which is missing: pip install 'quillgpt[he]'\n"
