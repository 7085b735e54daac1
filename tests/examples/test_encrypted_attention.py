"""The CKKS example: its circuit against loops over floats, its degrees against formulas, its command as it is typed."""

import itertools
import math
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from numpy.polynomial import Chebyshev

from quillgpt import train
from quillgpt.config import ModelConfig, RunConfig, updated
from quillgpt.errors import CheckError, ConfigError, NonFiniteError
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.model.positions import POSITIONS
from quillgpt.recipes import recipe_config
from quillgpt.tokenizer import load_tokenizer

pytest.importorskip("tenseal", reason="the example needs the extra `he`")
import check
import circuit
import survey
from circuit import CKKS, Kernel, Layout, seal

RANDOM = np.random.default_rng(11)
TOKENS = torch.arange(20) % 31
SmallCKKS = partial(CKKS, ring=2048, security=seal.SEC_LEVEL_TYPE.NONE)  # fast, and not secure


def small_model(**settings: object) -> GPT:
    torch.manual_seed(5)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 24, "vocab_size": 31}
    model = GPT(ModelConfig(**shape | settings)).eval().double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def by_loops(name: str, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    output, root = np.zeros_like(value), math.sqrt(query.shape[1])
    for i in range(len(query)):
        for j in range(i + 1):
            weight = query[i] @ key[j] / root / (i + 1)
            if name != "pointwise-identity":
                power = int(name.removeprefix("gaussian-poly-"))
                weight = (1 - sum((query[i] - key[j]) ** 2) / (2 * root * power)) ** power
            output[i] += weight * value[j]
    return output


def kernel_of(name: str, positions: int, head_size: int, **settings: object) -> Kernel:
    config = ModelConfig(attention=name, n_embd=2 * head_size, n_head=2, **settings)
    return circuit.polynomial_kernel(config, positions) or pytest.fail(f"{name} is a polynomial")


def encrypted(kernel: Kernel, layout: Layout, *parts: np.ndarray) -> tuple[np.ndarray, int]:
    ckks = SmallCKKS(kernel.depth + 1, [-1, *layout.rotations])
    sent = [ckks.encrypt(layout.packed(part)) for part in parts]
    result = circuit.attend(ckks, layout, kernel, *sent)
    return layout.unpacked(ckks.decrypt(result)), ckks.level(sent[0]) - ckks.level(result)


def test_a_matrix_is_packed_position_by_position_and_repeated() -> None:
    layout = Layout(positions=3, head_size=3, slots=32)
    x = np.arange(1.0, 10).reshape(3, 3)
    assert layout.packed(x).tolist() == 2 * [1, 4, 7, 0, 2, 5, 8, 0, 3, 6, 9, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(layout.unpacked(layout.packed(x)), x)
    assert layout.rotations == [4, 8]
    assert layout.causal(0, np.array([5.0, 6.0, 7.0])).tolist() == 8 * [5, 6, 7, 0]
    assert layout.causal(2, np.array([5.0, 6.0, 7.0])).tolist() == 8 * [0, 0, 7, 0]


def test_the_circuit_equals_the_formula_and_takes_the_stated_depth() -> None:
    depths = {"gaussian-poly-2": 4, "gaussian-poly-6": 6, "gaussian-poly-14": 7, "pointwise-identity": 3}
    shapes = [(5, 6), (8, 4), (1, 1), (16, 32)]
    for name, positions, head_size in [*((name, 8, 8) for name in depths), *(("gaussian-poly-6", *s) for s in shapes)]:
        parts, kernel = RANDOM.normal(size=(3, positions, head_size)), kernel_of(name, positions, head_size)
        output, depth = encrypted(kernel, Layout(positions, head_size, slots=1024), *parts)
        error = np.abs(output - by_loops(name, *parts)).max() / np.abs(output).max()
        assert error < 1e-7, (name, positions, head_size, error)
        assert depth == kernel.depth == depths[name], name


def test_a_mistake_in_the_circuit_is_above_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, parts, right = Layout(4, 8, slots=1024), RANDOM.normal(size=(3, 4, 8)), kernel_of("gaussian-poly-8", 4, 8)
    plain = by_loops("gaussian-poly-8", *parts)

    def error(kernel: Kernel, *sent: np.ndarray) -> float:
        return float(np.abs(encrypted(kernel, layout, *sent)[0] - plain).max() / np.abs(plain).max())

    assert error(right, *parts) < 1e-6
    wrong = {
        "scale": (right._replace(scale=1.01 * right.scale), *parts),
        "power": (right._replace(power=7), *parts),
        "product": (right._replace(is_distance=False), *parts),
        "position": (right, np.roll(parts[0], 1, axis=0), *parts[1:]),
    }
    assert not [name for name, arguments in wrong.items() if not error(*arguments) > 1e-4]
    monkeypatch.setattr(layout, "causal", lambda _, factor: np.resize(factor, layout.slots))  # the future is visible
    assert error(right, *parts) > 1e-4


def test_a_client_decrypts_only_its_own_and_the_deepest_circuit_is_128_bit_secure_to_seal() -> None:
    numbers = np.linspace(-1, 1, 1024)
    client, other = SmallCKKS(1, []), SmallCKKS(1, [])
    np.testing.assert_allclose(client.decrypt(client.encrypt(numbers)), numbers, atol=1e-6)
    assert np.abs(other.decrypt(client.encrypt(numbers)) - numbers).max() > 100
    standard = {16384: 438, 32768: 881}  # bits of the modulus [Albrecht 2018, table 1]
    assert (standard[circuit.RING] - 2 * 60) // 40 == circuit.MAX_DEPTH == 19
    CKKS(circuit.MAX_DEPTH, [])
    with pytest.raises(ValueError, match="encryption parameters are not set correctly"):
        CKKS(circuit.MAX_DEPTH, [], ring=16384)


def test_a_head_is_read_from_the_models_own_forward_pass() -> None:
    variants = [{}, {"position": "rotary", "qk_norm": True}, {"position": "rotary", "value_embeddings": True}]
    for name, settings in itertools.product(("gaussian-poly-4", "pointwise-identity"), variants):
        inputs = survey.module_inputs(small_model(attention=name, **settings), TOKENS)
        parts = [part[0, 1].numpy() for part in inputs["blocks.1.heads"]]
        plain = inputs["blocks.1.attention.projection"][0][0, :, 8:]
        np.testing.assert_allclose(plain, by_loops(name, *parts), rtol=1e-9, atol=1e-12, err_msg=str(settings))
    kernel = kernel_of("pointwise-identity", 3, 8, pointwise_length_power=0.5)
    np.testing.assert_allclose(kernel.scale, [1 / math.sqrt(8 * length) for length in (1, 2, 3)])


def test_the_least_degree_is_that_of_the_best_polynomial_or_a_few_more() -> None:
    """The best polynomials of 1 / (a - x) on [-1, 1] err by (a - √(a² - 1))^n / (a² - 1)."""
    for a, allowed in itertools.product((1.05, 1.2, 2.0), (1e-2, 1e-5)):
        ratio = a - math.sqrt(a * a - 1)
        best = max(1, math.ceil(math.log(allowed * (a * a - 1)) / math.log(ratio)))
        found = survey.least_degree(lambda x, a=a: 1 / (a - x), -1.0, 1.0, allowed)
        assert best <= found <= best + math.log(5) / -math.log(ratio) + 1, (a, allowed, best, found)
    for degree in (1, 2, 5, 12, 100):  # a polynomial is found at its own degree
        assert survey.least_degree(Chebyshev.basis(degree, domain=[-3, 7]), -3.0, 7.0, 1e-9) == degree
    edges = [survey.least_degree(np.sign, -1.0, 1.0, 1e-3), survey.least_degree(np.exp, 2.0, 2.0, None)]
    assert edges == [survey.MAX_DEGREE + 1, 1]
    n, x = survey.least_degree(np.exp, -8.0, 0.0, None), np.linspace(-8, 0, 999)  # None: of the relative error
    assert np.abs(Chebyshev.interpolate(np.exp, n, domain=[-8, 0])(x) / np.exp(x) - 1).max() < 1.1 * survey.ACCURACY
    assert all(survey.Approximation("", 0, 1, n).depth == math.ceil(math.log2(n + 1)) for n in range(1, 300))


def survey_of(**settings: object) -> tuple[list[survey.Part], set[str]]:
    """All parts, and the names of those that are not polynomials."""
    model = small_model(**settings)
    parts = survey.survey(model, survey.module_inputs(model, TOKENS))
    return parts, {part.name for part in parts if part.approximations}


def test_the_survey_knows_every_menu_entry() -> None:
    for name in ATTENTION:
        _, found = survey_of(attention=name)
        assert (f"attention: {name}" in found) is not name.startswith(("gaussian-poly-", "pointwise-id")), name
    for name in MLPS:
        _, found = survey_of(mlp=name, attention="gaussian-poly-2")
        assert (f"activation: {name}" in found) is (name != "square"), name
    for norm, position, qk_norm in itertools.product(NORMS, POSITIONS, (False, True)):
        settings = {"norm": norm, "position": position, "qk_norm": qk_norm}
        parts, found = survey_of(attention="gaussian-poly-2", mlp="square", **settings)
        assert found == {f"norm: {norm}", *(["norm: qk_norm"] if qk_norm else [])}, settings
        rotations = [part.depth for part in parts if part.name == "position: rotary"]
        assert rotations == ([] if position == "learned" else [int(qk_norm)] * 2), settings
    gate = [part for part in survey_of(value_embeddings=True)[0] if part.name == "value embedding's gate"]
    assert [(part.approximations[0].function, part.depth > 0) for part in gate] == [("sigmoid", True)]


def test_depths_and_intervals_are_those_of_the_recipe_polynomial() -> None:
    recipe = {
        name: getattr(recipe_config("polynomial").model, name) for name in ("attention", "mlp", "norm", "qk_norm")
    }
    (parts, found), model = survey_of(**recipe), small_model(**recipe)
    norms = [part for part in parts if part.name == "norm: rmsnorm"]
    assert (found, len(norms)) == ({"norm: rmsnorm"}, 5)
    root = norms[0].approximations[0]
    squares = (model.token_embedding(TOKENS) + model.position_embedding.weight[:20]).square().mean(-1) + 1e-5
    assert (root.low, root.high) == pytest.approx((float(squares.min()), float(squares.max())))
    assert norms[0].depth == 2 + math.ceil(math.log2(root.degree + 1))
    matrices, attention, activation, head = 2 * 4, 2 * 6, 2 * 1, 1
    assert sum(part.depth for part in parts if part not in norms) == matrices + attention + activation + head


def test_the_stated_polynomials_compute_softmax() -> None:
    def polynomial(function: object, of: survey.Approximation) -> Chebyshev:
        return Chebyshev.interpolate(function, of.degree, domain=of[1:3])

    inputs = survey.module_inputs(model := small_model(), TOKENS)
    attention = next(part for part in survey.survey(model, inputs) if part.name == "attention: softmax")
    query, key, _ = (part[0] for part in inputs["blocks.0.heads"])
    scores, visible = query @ key.mT / math.sqrt(8), torch.ones(20, 20, dtype=torch.bool).tril()
    exponential, inverse = attention.approximations
    exponentials = polynomial(np.exp, exponential)((scores - scores[:, visible].max()).numpy()) * visible.numpy()
    weights = exponentials * polynomial(np.reciprocal, inverse)(exponentials.sum(-1, keepdims=True))
    expected = scores.masked_fill(~visible, -math.inf).softmax(-1).numpy()
    assert np.abs(weights - expected).max() < 4 * survey.ACCURACY
    assert attention.depth == 1 + exponential.depth + 1 + inverse.depth + 1


def load(monkeypatch: pytest.MonkeyPatch, **settings: object) -> GPT:
    """Set the model that check.py loads, and a CKKS that is fast and not secure."""
    model = small_model(**{"vocab_size": 257, "attention": "gaussian-poly-4"} | settings)
    monkeypatch.setattr(check, "load_model", lambda _: (model, load_tokenizer("byte")))
    monkeypatch.setattr(circuit, "RING", 2048)
    monkeypatch.setattr(circuit, "CKKS", SmallCKKS)
    return model


def test_the_check_compares_a_head_and_refuses_a_difference(monkeypatch, capsys) -> None:
    load(monkeypatch, mlp="square")
    check.main(["model", "--layer", "1", "--head", "1", "--length", "9"])
    out = capsys.readouterr().out
    assert all(words in out for words in ("layer 1, head 1", "9 x 8", "depth: 5 levels of", "norm: layernorm")), out
    attend = circuit.attend
    monkeypatch.setattr(circuit, "attend", lambda *arguments: attend(*arguments[:-1], arguments[-2]))  # keys for values
    with pytest.raises(CheckError, match="the encrypted head differs by"):
        check.main(["model"])
    load(monkeypatch, attention="softmax")
    check.main(["model", "--survey"])
    assert "exp x: degree" in capsys.readouterr().out


def test_what_cannot_be_checked_is_a_one_line_error(monkeypatch) -> None:
    mistakes = {
        ("softmax", ""): "attention.*softmax.*gaussian-poly-N.*--survey",
        ("gaussian-poly-4", "--layer=2"): "layer.*2.*0 to 1",
        ("gaussian-poly-4", "--head=-1"): "head.*-1.*0 to 1",
        ("gaussian-poly-4", "--length=25"): "length.*25.*1 to 24",
        ("gaussian-poly-4", "--prompt=abc"): "length.*8.*1 to 3",
        ("gaussian-poly-4", "--tolerance=nan"): "tolerance",
    }
    for (attention, argument), words in mistakes.items():
        load(monkeypatch, attention=attention)
        with pytest.raises(ConfigError, match=words):
            check.main(["model", *argument.split()])
    for factor, error in ((1e6, CheckError), (0.0, CheckError), (math.nan, NonFiniteError)):
        load(monkeypatch, bias=False).blocks[0].attention.qkv.weight[-16:] *= factor
        with pytest.raises(error):
            check.main(["model"])


def test_a_trained_run_is_computed_with_secure_parameters_and_a_failed_check_ends_with_76(small_run: RunConfig) -> None:
    train(config := updated(small_run, {"attention": "gaussian-poly-2", "mlp": "square", "steps": 2}, where="test"))
    command = [sys.executable, check.__file__, config.train.out, "--tolerance", "1e-14"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, "depth: 4 levels of the 19 that 128-bit secure" in result.stdout) == (76, True)
    assert float(re.search(r"error: (\S+) at most", result.stdout)[1]) < 1e-7
    assert re.fullmatch(r"check.py: the encrypted head differs by .*; the tolerance is 1.0e-14\n", result.stderr)
