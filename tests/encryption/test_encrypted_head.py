"""The circuit on ciphertexts against loops over floats; its depth against the formula; mistakes against the tolerance.

The rings here are too small to be secure, and fast; the command's own test uses secure ones.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from quillgpt.cli.encrypt_check import TOLERANCE
from quillgpt.config import ModelConfig
from quillgpt.encryption import check
from quillgpt.encryption.check import Outcome, encrypted_head, needed_depth
from quillgpt.encryption.circuit import attend_depth
from quillgpt.encryption.ckks import Client, Parameters
from quillgpt.encryption.head import Head, Kernel, Linear, polynomial_kernel, read_head
from quillgpt.encryption.layout import Layout, Numbers
from quillgpt.errors import CheckError, ConfigError, NonFiniteError
from quillgpt.model.attention import find_attention
from quillgpt.model.gpt import GPT

ROOT_OF_8 = math.sqrt(8)


def by_loops(name: str, query: Numbers, key: Numbers, value: Numbers) -> Numbers:
    """The attention of one head as the paper writes it, (T, D), one pair after the other."""
    positions, head_size = query.shape
    output = np.zeros_like(value)
    for i in range(positions):
        for j in range(i + 1):
            if name == "pointwise-identity":
                weight = query[i] @ key[j] / math.sqrt(head_size) / (i + 1)
            else:
                power = int(name.removeprefix("gaussian-poly-"))
                distance = sum((q - k) ** 2 for q, k in zip(query[i], key[j], strict=True))
                weight = (1 - distance / (2 * math.sqrt(head_size) * power)) ** power
            output[i] += weight * value[j]
    return output


def random_head(name: str, positions: int, head_size: int, width: int, *, has_maps: bool = True) -> Head:
    """A head of random numbers, each position with its own matrices, as rotary positions have them."""
    random = np.random.default_rng(11)
    stream = random.normal(size=(positions, width))
    maps = [
        Linear(
            weight=random.normal(size=(positions, head_size, width)) / math.sqrt(width),
            bias=0.3 * random.normal(size=(positions, head_size)),
        )
        for _ in range(3)
    ]
    query, key, value = (np.einsum("tdc,tc->td", each.weight, stream) + each.bias for each in maps)
    config = ModelConfig(attention=name, n_embd=2 * head_size, n_head=2)
    return Head(
        kernel=polynomial_kernel(config, positions),
        stream=stream,
        query=query,
        key=key,
        value=value,
        maps=tuple(maps) if has_maps else (),
        output=by_loops(name, query, key, value),
    )


def run(head: Head, *, spare: int = 0, slots: int = 1024) -> Outcome:
    """The head on ciphertexts, with exactly the depth of the formula and so many levels to spare."""
    depth = attend_depth(head.kernel) + (1 if head.maps else 0) + spare
    parameters = Parameters(ring=2 * slots, scale_bits=45, depth=depth, security_bits=0)
    positions, head_size = head.output.shape
    return encrypted_head(head, parameters, Layout(positions=positions, head_size=head_size, slots=slots), "")


@pytest.mark.parametrize("name", [*(f"gaussian-poly-{power}" for power in (2, 4, 6, 8, 14)), "pointwise-identity"])
def test_the_circuit_is_the_formula(name: str) -> None:
    assert run(random_head(name, 8, 8, 24)).relative_difference < 1e-7


@pytest.mark.parametrize(
    ("positions", "head_size", "width"), [(5, 6, 40), (8, 4, 300), (1, 1, 1), (3, 16, 16), (16, 32, 70), (9, 3, 7)]
)
def test_any_shape_fits_the_slots(positions: int, head_size: int, width: int) -> None:
    assert run(random_head("gaussian-poly-4", positions, head_size, width)).relative_difference < 1e-7


def test_behind_a_norm_queries_keys_and_values_are_encrypted() -> None:
    outcome = run(random_head("gaussian-poly-4", 8, 8, 24, has_maps=False))
    assert outcome.relative_difference < 1e-7
    assert (outcome.inputs, outcome.starts_after) == (3, "qk_norm")


DEPTHS = {2: 5, 4: 6, 6: 7, 8: 7, 10: 8, 14: 8, 16: 8}
"""1 projection + 1 squared distance + 1 scale and mask + ceil(log2 N) + 1 value"""


@pytest.mark.parametrize(("power", "depth"), DEPTHS.items())
def test_the_depth_counted_on_the_ciphertexts_is_the_formulas(power: int, depth: int) -> None:
    config = ModelConfig(attention=f"gaussian-poly-{power}")
    kernel = polynomial_kernel(config, 2)

    assert needed_depth(config, kernel) == depth == 4 + math.ceil(math.log2(power))
    assert needed_depth(dataclasses.replace(config, qk_norm=True), kernel) == depth - 1
    assert run(random_head(config.attention, 2, 2, 2), spare=1, slots=64).depth == depth


def test_a_pair_of_products_is_as_deep_as_it_looks() -> None:
    head = random_head("pointwise-identity", 2, 2, 2)
    assert run(head, spare=2, slots=64).depth == 4
    assert run(dataclasses.replace(head, maps=()), slots=64).depth == 3


def test_with_one_level_less_the_circuit_cannot_be_computed() -> None:
    with pytest.raises(ValueError, match="scale out of bounds"):
        run(random_head("gaussian-poly-4", 2, 2, 2), spare=-1, slots=64)


def wrong_weight(head: Head) -> Head:
    query, *others = head.maps
    weight = query.weight.copy()
    weight[:, 0, 0] += 0.1
    return dataclasses.replace(head, maps=(Linear(weight=weight, bias=query.bias), *others))


def wrong_bias(head: Head) -> Head:
    *others, value = head.maps
    return dataclasses.replace(head, maps=(*others, Linear(weight=value.weight, bias=value.bias + 0.01)))


def wrong_position(head: Head) -> Head:
    """Every position with the matrices of the one before: what a forgotten rotation would do."""
    rolled = [Linear(weight=np.roll(each.weight, 1, axis=0), bias=each.bias) for each in head.maps]
    return dataclasses.replace(head, maps=tuple(rolled))


def wrong_kernel(head: Head, **changes: object) -> Head:
    return dataclasses.replace(head, kernel=dataclasses.replace(head.kernel, **changes))


MISTAKES = {
    "weight": wrong_weight,
    "bias": wrong_bias,
    "position": wrong_position,
    "stream": lambda head: dataclasses.replace(head, stream=head.stream + 0.01),
    "scale": lambda head: wrong_kernel(head, scale=1.01 * head.kernel.scale),
    "scale by the width": lambda head: wrong_kernel(head, scale=head.kernel.scale / ROOT_OF_8),
    "constant": lambda head: wrong_kernel(head, constant=0.99),
    "power": lambda head: wrong_kernel(head, power=head.kernel.power - 1),
    "product": lambda head: wrong_kernel(head, is_distance=False),
    "keys for queries": lambda head: dataclasses.replace(head, maps=(head.maps[1], head.maps[0], head.maps[2])),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_above_the_tolerance(mistake: str) -> None:
    head = random_head("gaussian-poly-8", 4, 8, 8)
    assert run(MISTAKES[mistake](head), slots=128).relative_difference > TOLERANCE
    assert run(head, slots=128).relative_difference < TOLERANCE / 100


def test_a_mask_that_lets_the_future_through_is_above_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layout, "visible", lambda self, _, factor: np.tile(np.resize(factor, self.lanes), self.rows))
    assert run(random_head("gaussian-poly-4", 4, 8, 8), slots=128).relative_difference > TOLERANCE


def test_another_clients_key_does_not_decrypt() -> None:
    parameters = Parameters(ring=128, scale_bits=40, depth=1, security_bits=0)
    numbers = np.linspace(-1, 1, 64)
    client, other = Client(parameters), Client(parameters)

    np.testing.assert_allclose(client.decrypt(client.encrypt(numbers)), numbers, atol=1e-6)
    assert np.abs(other.decrypt(client.encrypt(numbers)) - numbers).max() > 100


def small_model(**settings: object) -> GPT:
    torch.manual_seed(5)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 12, "vocab_size": 31}
    model = GPT(ModelConfig(**shape | settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


TOKENS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
VARIANTS = [
    {"position": position, "norm": norm, "bias": bias, "qk_norm": qk_norm, "attention": attention}
    for attention in ("gaussian-poly-4", "pointwise-identity")
    for position, norm, bias, qk_norm in [
        ("learned", "layernorm", True, False),
        ("rotary", "rmsnorm", False, False),
        ("rotary", "layernorm", True, True),
    ]
]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_head_read_from_a_model_is_that_of_its_forward_pass(settings: dict[str, object]) -> None:
    """Maps and kernel are read off; what they give is the model's output, and the maps' the model's queries."""
    model, layer, number = small_model(**settings), 1, 1
    head = read_head(model, TOKENS, layer, number)

    for each, expected in zip(head.maps, (head.query, head.key, head.value), strict=False):
        answer = np.einsum("tdc,tc->td", each.weight, head.stream) + each.bias
        np.testing.assert_allclose(answer, expected, rtol=1e-10, atol=1e-12)
    assert bool(head.maps) is not settings["qk_norm"]
    np.testing.assert_allclose(head.output, by_loops(str(settings["attention"]), head.query, head.key, head.value))
    given = [torch.from_numpy(part)[None, None] for part in (head.query, head.key, head.value)]
    expected = find_attention(str(settings["attention"]))(*given, dropout=0.0)[0, 0]
    np.testing.assert_allclose(head.output, expected.numpy(), rtol=1e-10, atol=1e-12)


def test_a_models_stream_reaches_its_logits() -> None:
    """The stream that is encrypted is the real one: put back in its place it gives the model's own logits."""
    model = small_model(attention="gaussian-poly-4")
    expected = model(TOKENS[None])
    stream = torch.from_numpy(read_head(model, TOKENS, 1, 0).stream).float()[None]
    model.get_submodule("blocks.1.norm_1").forward = lambda _: stream
    torch.testing.assert_close(model(TOKENS[None]), expected)


@pytest.mark.parametrize("length_power", [0.0, 0.5, 1.0])
def test_the_length_of_pointwise_attention_is_in_the_kernel(length_power: float) -> None:
    model = small_model(attention="pointwise-identity", pointwise_length_power=length_power)
    head = read_head(model, TOKENS, 0, 0)
    assert run(head).relative_difference < 1e-7


@pytest.mark.parametrize("name", ["softmax", "gaussian", "pointwise-relu", "power"])
def test_an_attention_that_is_no_polynomial_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"attention = {name} is not a polynomial.*gaussian-poly-N.*--survey"):
        check.check_head(small_model(attention=name), TOKENS, layer=0, head=0)


def test_a_text_too_long_for_the_slots_is_refused() -> None:
    config = ModelConfig(n_embd=128, n_head=2, attention="gaussian-poly-8")
    with pytest.raises(ConfigError, match=r"length = 300 is too long: .*16,384 slots, enough for 256 positions"):
        check.fitting_parameters(config, polynomial_kernel(config, 300), 300)
    assert check.fitting_parameters(config, polynomial_kernel(config, 256), 256).ring == 32768
    assert check.fitting_parameters(config, polynomial_kernel(config, 128), 128).ring == 16384


def test_a_power_too_high_for_the_levels_is_refused() -> None:
    config = ModelConfig(attention="gaussian-poly-65536")
    with pytest.raises(ConfigError, match="attention = gaussian-poly-65536 takes 20 levels; CKKS has 19"):
        check.fitting_parameters(config, polynomial_kernel(config, 8), 8)
    deepest = dataclasses.replace(config, attention="gaussian-poly-32768")
    assert check.fitting_parameters(deepest, polynomial_kernel(deepest, 8), 8).depth == 19


@pytest.mark.parametrize(("factor", "error"), [(1e6, CheckError), (0.0, CheckError), (math.nan, NonFiniteError)])
def test_an_output_that_cannot_be_held_is_refused(factor: float, error: type[Exception]) -> None:
    model = small_model(attention="gaussian-poly-4")
    with torch.no_grad():
        model.get_submodule("blocks.0.attention.qkv").weight[-16:] *= factor
        model.get_submodule("blocks.0.attention.qkv").bias[-16:] *= factor
    with pytest.raises(error, match="the head's output"):
        check.check_head(model, TOKENS, layer=0, head=1)


def test_the_kernel_is_that_of_the_settings() -> None:
    kernel = polynomial_kernel(ModelConfig(n_embd=128, n_head=2, attention="gaussian-poly-8"), 3)
    assert kernel == dataclasses.replace(kernel, is_distance=True, constant=1.0, power=8)
    np.testing.assert_allclose(kernel.scale, [-1 / (2 * 8 * 8)] * 3)
    assert isinstance(kernel, Kernel)
