"""explain/gpt2.py and explain/pytorch.py compute what the real model, optimizer, loop and sampler compute."""

import ast
import functools
import io
import itertools
import math
import runpy
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from same_numbers import CHECKS, OPTIM, SHAPE, expected_tokens, expected_training, is_caught, same_batches, same_softmax
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.explain import gpt2, pytorch
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import SIZES, parameter_count
from quillgpt.sample.engine import generate
from quillgpt.tokenizer import load_tokenizer

SOURCE = Path(gpt2.__file__).read_text(encoding="utf-8")
MUTATIONS = {
    "/ math.sqrt(query.shape[-1])": "/ math.exp(query.shape[-1])",
    "dtype=torch.bool).tril()": "dtype=torch.bool).triu()",
    "x = x + attention(": "x = x - attention(",
    "variance + 1e-5": "variance + 1e-6",
    "0.044715": "0.044751",
    "math.sqrt(2 / math.pi)": "math.sqrt(3 / math.pi)",
    "0.02 / math.sqrt(2 * config": "0.02 / math.sqrt(1 * config",
    "return -log_probabilities": "return +log_probabilities",
    "(1 - config.beta2) * (gradient**2": "(1 - config.beta1) * (gradient**2",
    "mean / (1 - config.beta1 ** (step + 1))": "mean / (1 - config.beta1 ** (step + 2))",
    "weight.ndim >= 2": "weight.ndim >= 1",
    "config.lr * (step + 1)": "config.lr * (step + 0)",
    "math.cos(math.pi * progress)": "math.cos(math.tau * progress)",
    "(norm + 1e-6)).clamp(max=1)": "(norm + 1e-6)).clamp(min=1)",
    "tokens[indices + 1]": "tokens[indices + 0]",
    "/ config.temperature": "* config.temperature",
    "logits >= logits.topk": "logits > logits.topk",
    "config.context_length // 2": "config.context_length // 3",
}


class PlainPyTorch:
    """explain/pytorch.py with the names of gpt2.py, so that the same checks apply."""

    Config = gpt2.Config
    batch = staticmethod(gpt2.batch)
    sample = staticmethod(gpt2.sample)

    def initial_weights(self, config: gpt2.Config) -> dict[str, Tensor]:
        """A new model's weights; torch's own initialization draws first, so the seed is set again."""
        seed = torch.initial_seed()
        model = pytorch.GPT(config)
        torch.manual_seed(seed)
        model.initialize()
        return dict(model.named_parameters())

    def gpt(self, tokens: Tensor, weights: dict[str, Tensor], config: gpt2.Config) -> Tensor:
        """The model's logits with these weights."""
        return functional_call(pytorch.GPT(config).double(), weights, tokens)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """torch's own."""
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def train(self, weights: dict[str, Tensor], tokens: Tensor, config: gpt2.Config) -> Iterator[float]:
        """Train a model with the weights, and copy them back."""
        model = pytorch.GPT(config).double()
        model.load_state_dict(weights)
        original, pytorch.batch = pytorch.batch, self.batch
        try:
            yield from pytorch.train(model, tokens, config)
        finally:
            pytorch.batch = original
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weights[name].copy_(weight)


def module_of(source: str) -> ModuleType:
    """A module that runs this source."""
    module = ModuleType("a_copy_of_gpt2")
    exec(compile(source, "a copy of gpt2.py", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("check", CHECKS)
def test_gpt2_in_one_file_and_plain_pytorch_compute_what_the_real_code_computes(check) -> None:
    check(gpt2)
    if check not in (same_softmax, same_batches):  # plain PyTorch uses torch's softmax and gpt2.py's batches
        check(PlainPyTorch())


def test_any_one_changed_token_is_caught() -> None:
    missed = []
    for before, after in MUTATIONS.items():
        assert SOURCE.count(before) == 1, before
        mutated = SOURCE.replace(before, after)
        pairs = zip(*([*tokenize.generate_tokens(io.StringIO(x).readline)] for x in (SOURCE, mutated)), strict=True)
        assert sum(old.string != new.string for old, new in pairs) == 1
        if not is_caught(module_of(mutated)):
            missed.append(after)
    assert missed == []
    assert not is_caught(module_of(SOURCE)), "an unchanged copy passes"


def test_the_comparison_covers_clipping_and_full_windows() -> None:
    _, norms, _ = expected_training()
    assert min(norms) < OPTIM["gradient_clip"] < max(norms), "some gradients are clipped and some are not"
    greedy = expected_tokens(0.0, 0)
    assert len(greedy) > SHAPE["context_length"], "the window is cut"
    assert len(set(greedy)) > 4
    assert expected_tokens(1.3, 9) != greedy


def test_the_sample_is_the_text_that_generate_writes() -> None:
    torch.manual_seed(3)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 32, "context_length": 16, "vocab_size": 257}
    model = GPT(ModelConfig(**shape)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[:257] += 0.3 * torch.randn_like(parameter[:257])
    weights = {name: weight[:257] if name.startswith("token") else weight for name, weight in model.named_parameters()}
    tokens = gpt2.sample(gpt2.encode("the cat", []), 40, weights, gpt2.Config(**shape, top_k=1))
    expected = generate(model, load_tokenizer("byte"), "the cat", max_new_tokens=40, temperature=0)[0]
    assert gpt2.decode(list(tokens), []) == expected


def test_the_file_is_250_lines_of_bare_tensors_and_importing_it_does_nothing(capsys: pytest.CaptureFixture) -> None:
    assert len(SOURCE.splitlines()) <= 250
    nodes = list(ast.walk(ast.parse(SOURCE)))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"torch"}
    assert not {node.attr for node in nodes if isinstance(node, ast.Attribute)} & {"nn", "optim", "Module", "AdamW"}
    before = torch.get_rng_state()
    module_of(SOURCE)
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")


def test_the_smallest_gpt2_has_its_size() -> None:
    config = gpt2.Config(n_layer=12, n_head=12, n_embd=768, context_length=1024, vocab_size=50257)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in gpt2.initial_weights(config).values())
    assert count == parameter_count(SIZES["gpt2"]) == 124_439_808


def slow_encode(text: str, merges: list[str]) -> list[int]:
    """Byte-pair encoding as usually defined: join the pairs whose merge was learned first, until there are none."""
    ranks = {(ord(pair[0]), ord(pair[1])): number for number, pair in enumerate(merges)}
    tokens = list(text.encode())
    while found := [ranks[pair] for pair in itertools.pairwise(tokens) if pair in ranks]:
        joined: list[int] = []
        for token in tokens:
            if joined and ranks.get((joined[-1], token)) == min(found):
                joined[-1] = 256 + min(found)
            else:
                joined.append(token)
        tokens = joined
    return tokens


def test_the_tokenizer_is_byte_pair_encoding() -> None:
    texts = ["the cat sat on the mat, the rat sat on the cat", "naïve 狐 🙂 naïve", "aaaaaaaaaaaaaaa", "", "x"]
    for learned_from, text in itertools.product(texts[:3], texts):
        merges = gpt2.learn_merges(learned_from, 12)
        tokens = gpt2.encode(text, merges)
        assert tokens == slow_encode(text, merges), (learned_from, text)
        assert gpt2.decode(tokens, merges) == text
    merges = gpt2.learn_merges(texts[0], 10)
    for number, pair in enumerate(merges):
        pairs = list(itertools.pairwise(slow_encode(texts[0], merges[:number])))
        assert pairs.count((ord(pair[0]), ord(pair[1]))) == max(map(pairs.count, pairs)), "the most frequent pair"
    assert gpt2.decode([0xE7, 0x8B], []) == "\ufffd", "tokens that are not text still decode"


def test_both_files_run_as_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["script", gpt2.__file__])
    copy = tmp_path / "gpt2.py"
    copy.write_text(
        SOURCE.replace("steps: int = 600", "steps: int = 51").replace("batch_size: int = 16", "batch_size: int = 4")
    )
    runpy.run_path(str(copy), run_name="__main__")
    first, last, *sample = capsys.readouterr().out.splitlines()
    assert abs(float(first.split()[-1]) - math.log(512)) < 0.2
    assert float(last.split()[-1]) < 5.5
    assert "".join(sample)

    monkeypatch.setattr(gpt2, "Config", functools.partial(gpt2.Config, steps=1))
    runpy.run_path(pytorch.__file__, run_name="__main__")
    assert capsys.readouterr().out.startswith("step    0  loss 6.")
