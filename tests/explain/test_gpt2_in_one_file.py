"""explain/gpt2.py computes what the real model, optimizer, loop and sampler compute; one changed token shows."""

import ast
import io
import itertools
import math
import runpy
import sys
import tokenize
from pathlib import Path
from types import ModuleType

import pytest
import torch
from same_numbers import CHECKS, OPTIM, SHAPE, expected_tokens, expected_training, failing_checks

from quillgpt.config import ModelConfig
from quillgpt.explain import gpt2
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import SIZES, parameter_count
from quillgpt.sample.generate import generate
from quillgpt.tokenizer import load_tokenizer

FILE = Path(gpt2.__file__)
SOURCE = FILE.read_text(encoding="utf-8")

MUTATIONS = {
    "scores not scaled by the root of D": ("/ math.sqrt(query.shape[-1])", "/ math.exp(query.shape[-1])"),
    "a token does not see itself": ("dtype=torch.bool).tril()", "dtype=torch.bool).triu()"),
    "attention taken from the stream": ("x = x + attention(", "x = x - attention("),
    "another epsilon in the norm": ("variance + 1e-5", "variance + 1e-6"),
    "another constant in GELU": ("0.044715", "0.044751"),
    "another tanh in GELU": ("math.sqrt(2 / math.pi)", "math.sqrt(3 / math.pi)"),
    "the residual projections not smaller": ("0.02 / math.sqrt(2 * config", "0.02 / math.sqrt(1 * config"),
    "loss of another sign": ("return -log_probabilities", "return +log_probabilities"),
    "beta1 for beta2": ("(1 - config.beta2) * (gradient**2", "(1 - config.beta1) * (gradient**2"),
    "bias correction a step late": (
        "mean / (1 - config.beta1 ** (step + 1))",
        "mean / (1 - config.beta1 ** (step + 2))",
    ),
    "biases shrink too": ("weight.ndim >= 2", "weight.ndim >= 1"),
    "warm-up without its first share": ("config.lr * (step + 1)", "config.lr * (step + 0)"),
    "half a cosine too many": ("math.cos(math.pi * progress)", "math.cos(math.tau * progress)"),
    "gradients made longer": ("(norm + 1e-6)).clamp(max=1)", "(norm + 1e-6)).clamp(min=1)"),
    "targets not moved on": ("tokens[places + 1]", "tokens[places + 0]"),
    "temperature the wrong way": ("/ config.temperature", "* config.temperature"),
    "one candidate fewer": ("logits >= logits.topk", "logits > logits.topk"),
    "a full window cut to a third": ("config.context_length // 2", "config.context_length // 3"),
}


def module_of(source: str) -> ModuleType:
    """A module that runs this source."""
    module = ModuleType("a_copy_of_gpt2")
    exec(compile(source, "a copy of gpt2.py", "exec"), module.__dict__)
    return module


def words(source: str) -> list[str]:
    """The source's tokens."""
    return [token.string for token in tokenize.generate_tokens(io.StringIO(source).readline)]


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_the_file_computes_what_the_real_code_computes(check) -> None:
    check(gpt2)


@pytest.mark.parametrize("name", MUTATIONS)
def test_one_changed_token_is_caught(name: str) -> None:
    before, after = MUTATIONS[name]
    assert SOURCE.count(before) == 1
    mutated = SOURCE.replace(before, after)
    changed = [(old, new) for old, new in zip(words(SOURCE), words(mutated), strict=True) if old != new]
    assert len(changed) == 1

    assert failing_checks(module_of(mutated)) != []


def test_a_copy_without_a_change_is_not_caught() -> None:
    assert failing_checks(module_of(SOURCE)) == []


def test_the_comparison_reaches_what_it_claims_to() -> None:
    _, norms, _ = expected_training()
    assert min(norms) < OPTIM["gradient_clip"] < max(norms), "some gradients are clipped and some are not"
    greedy = expected_tokens(0.0, 0)
    assert len(greedy) > SHAPE["context_length"], "the window is cut"
    assert len(set(greedy)) > 4
    assert expected_tokens(1.3, 9) != greedy


def test_the_sample_is_the_text_that_generate_writes() -> None:
    torch.manual_seed(3)
    config = gpt2.Config(n_layer=1, n_head=2, n_embd=32, context_length=16, vocab_size=257, top_k=1)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, context_length=16, vocab_size=257)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[:257] += 0.3 * torch.randn_like(parameter[:257])
    weights = {name: weight[:257] if name.startswith("token") else weight for name, weight in model.named_parameters()}

    ours = gpt2.decode(list(gpt2.sample(gpt2.encode("the cat", []), 40, weights, config)), [])

    assert ours == generate(model, load_tokenizer("byte"), "the cat", max_new_tokens=40, temperature=0)[0]


def test_the_file_is_at_most_250_lines() -> None:
    assert len(SOURCE.splitlines()) <= 250


def test_the_file_is_bare_tensors_and_stands_alone() -> None:
    tree = ast.parse(SOURCE)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"torch"}
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"nn", "optim", "Module", "AdamW"}


def test_importing_the_file_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    module_of(SOURCE)
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")


def test_the_smallest_gpt2_has_its_size() -> None:
    config = gpt2.Config(n_layer=12, n_head=12, n_embd=768, context_length=1024, vocab_size=50257)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in gpt2.initial_weights(config).values())
    assert count == parameter_count(SIZES["gpt2"]) == 124_439_808


TEXTS = ["the cat sat on the mat, the rat sat on the cat", "naïve 狐 🙂 naïve", "aaaaaaaaaaaaaaa", "", "x"]


def slow_encode(text: str, merges: list[str]) -> list[int]:
    """Byte-pair encoding as it is usually told: of all neighbours, join those whose merge was learned first."""
    ranks = {(ord(pair[0]), ord(pair[1])): number for number, pair in enumerate(merges)}
    tokens = list(text.encode())
    while True:
        found = [ranks[pair] for pair in itertools.pairwise(tokens) if pair in ranks]
        if not found:
            return tokens
        first = min(found)
        joined: list[int] = []
        for token in tokens:
            if joined and ranks.get((joined[-1], token)) == first:
                joined[-1] = 256 + first
            else:
                joined.append(token)
        tokens = joined


@pytest.mark.parametrize("learned_from", TEXTS[:3])
@pytest.mark.parametrize("text", TEXTS)
def test_encoding_is_byte_pair_encoding_and_decoding_undoes_it(learned_from: str, text: str) -> None:
    merges = gpt2.learn_merges(learned_from, 12)
    tokens = gpt2.encode(text, merges)
    assert tokens == slow_encode(text, merges)
    assert gpt2.decode(tokens, merges) == text


def test_each_merge_is_the_most_frequent_pair_of_its_turn() -> None:
    text = TEXTS[0]
    merges = gpt2.learn_merges(text, 10)
    for number, pair in enumerate(merges):
        tokens = slow_encode(text, merges[:number])
        pairs = list(itertools.pairwise(tokens))
        assert pairs.count((ord(pair[0]), ord(pair[1]))) == max(map(pairs.count, pairs))


def test_tokens_that_are_no_text_still_decode() -> None:
    assert gpt2.decode([0xE7, 0x8B], []) == "\ufffd"


def test_the_file_runs_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "gpt2.py"
    copy.write_text(
        SOURCE.replace("steps: int = 600", "steps: int = 51").replace("batch_size: int = 16", "batch_size: int = 4")
    )
    monkeypatch.setattr(sys, "argv", ["gpt2.py", str(FILE)])

    runpy.run_path(str(copy), run_name="__main__")

    first, last, *sample = capsys.readouterr().out.splitlines()
    assert abs(float(first.split()[-1]) - math.log(512)) < 0.2
    assert float(last.split()[-1]) < 5.5
    assert "".join(sample)
