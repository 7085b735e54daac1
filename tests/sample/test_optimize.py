"""A model optimized for inference: every form of weights in every model, and the compiled step of one token."""

import copy
import itertools

import pytest
import torch
from tiny_generation import new_tokens, random_tokens, tiny_gpt

from quillgpt.errors import ConfigError, NonFiniteError
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import RESIDUALS
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.model.positions import POSITIONS
from quillgpt.sample.engine import Generator, RecomputingGenerator, generate_tokens
from quillgpt.sample.optimize import check_request, optimize_for_inference
from quillgpt.sample.settings import SamplingSettings
from quillgpt.sample.weights import WEIGHTS, int4, plain

GREEDY = SamplingSettings(temperature=0, max_new_tokens=40)
SHORT = SamplingSettings(temperature=0, max_new_tokens=12)
FORMS = {
    "bf16": {"dtype": torch.bfloat16},
    **{name: {"quantize": name} for name in WEIGHTS},
    "int8, bf16": {"quantize": "int8", "dtype": torch.bfloat16},
}
MODERN = {
    "position": "rotary",
    "norm": "rmsnorm",
    "mlp": "relu2",
    "qk_norm": True,
    "residual": "mixed",
    "value_embeddings": True,
    "embedding_norm": True,
    "tied_head": False,
    "bias": False,
    "logit_softcap": 15.0,
}
VARIANTS = [
    *({"attention": name} for name in ATTENTION),
    *({"mlp": name, "norm": norm} for name, norm in itertools.product(MLPS, NORMS)),
    *({"position": name, "residual": other} for name, other in itertools.product(POSITIONS, RESIDUALS)),
    MODERN,
    {"tied_head": False, "n_embd": 20, "vocab_size": 3},
    {"n_embd": 6, "n_head": 3, "vocab_size": 1},
]


def test_every_menu_entry_generates_with_every_form_of_weights():
    settings = SamplingSettings(temperature=1.0, top_k=0, max_new_tokens=20)
    prompt, wrong = torch.zeros(1, 9, dtype=torch.int64), {}
    for i, variant in enumerate(VARIANTS):
        model = tiny_gpt(1.0, context_length=16, **variant)
        expected = Generator(model).prefill(prompt)
        for j, (form, options) in enumerate(FORMS.items()):
            generator = Generator(optimize_for_inference(model, **options))
            logits = generator.prefill(prompt)
            difference = float((logits.float() - expected).abs().max())
            is_right = difference <= (1e-5 if form == "none" else 0.1)
            is_right &= logits.dtype == options.get("dtype", torch.float32) or "logit_softcap" in variant
            if i % len(FORMS) == j:  # past the context limit, in turn with the forms: decoding takes most of the time
                steps = torch.stack(list(generate_tokens(generator, [0, 0], settings, range(2))))
                is_right &= steps.shape == (20, 2) and int(steps.max()) < model.config.vocab_size
            wrong |= {} if is_right else {f"{variant} {form}": difference}
    assert wrong == {}


def test_decoding_equals_the_uncached_model_with_the_same_weights():
    tokens = random_tokens(1, 30)
    for form, options in FORMS.items():
        optimized = optimize_for_inference(tiny_gpt(1.0, context_length=12), **options)
        cached, recomputed = Generator(optimized), RecomputingGenerator(optimized)
        pairs = [(cached.prefill(tokens[:, :4]), recomputed.prefill(tokens[:, :4]))]
        pairs += [(cached.decode(step), recomputed.decode(step)) for step in tokens[:, 4:].T]
        assert max(float((one - other).abs().max()) for one, other in pairs) <= 0.02, form


def test_the_original_model_is_not_changed_and_shares_its_weights():
    model = tiny_gpt().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for options in FORMS.values():
        assert optimize_for_inference(model, **options).config == model.config
    assert model.training
    assert before.keys() == model.state_dict().keys()
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    shared = optimize_for_inference(model).token_embedding.weight
    assert shared.data_ptr() == model.token_embedding.weight.data_ptr()


def test_a_tied_head_is_replaced_and_the_table_is_not():
    model = tiny_gpt(vocab_size=4096)
    quantized, chunked = optimize_for_inference(model, quantize="int4"), optimize_for_inference(model)
    assert isinstance(quantized.head, int4.Int4Linear)
    assert quantized.token_embedding.weight.equal(model.token_embedding.weight)
    assert isinstance(chunked.head, plain.FP32Linear)
    assert chunked.head.weight.data_ptr() == model.token_embedding.weight.data_ptr()
    assert optimize_for_inference(tiny_gpt()).head is None  # too small to gain


def test_a_model_is_not_optimized_twice():
    """Layers that are optimized already would keep their form without a message."""
    optimized = [optimize_for_inference(tiny_gpt(), **FORMS[form]) for form in FORMS if form != "none"]
    optimized += [optimize_for_inference(tiny_gpt(vocab_size=4096)), optimize_for_inference(tiny_gpt(), compile=True)]
    for model in optimized:
        with pytest.raises(ConfigError, match="already optimized; optimize the original model"):
            optimize_for_inference(model, quantize="int8")


def test_non_finite_weights_are_one_error():
    for bad, options in itertools.product([torch.nan, torch.inf], FORMS.values()):
        model = tiny_gpt()
        with torch.no_grad():
            model.blocks[0].attention.projection.bias[0] = bad
        for samples in (1, 2):
            generator = Generator(optimize_for_inference(model, **options))
            with pytest.raises(NonFiniteError, match="damaged"):
                new_tokens(generator, SamplingSettings(), range(samples))


def test_an_unsupported_request_is_one_line(monkeypatch):
    monkeypatch.setattr("quillgpt.runtime._has_compiler", lambda: False)
    for request, message in {
        ("int3", False, "cpu"): "invalid quantize: 'int3' (did you mean int8?); choose one of: none, int8, int4",
        ("int8", False, "cuda"): "invalid quantize: int8 (must be none on cuda); use --device cpu",
        ("int4", False, "mps"): "invalid quantize: int4 (must be none on mps); use --device cpu",
        ("int8", True, "cpu"): "--compile does not support int8 weights; leave out one of the two",
        ("none", True, "mps"): "--compile is not reliable on MPS; leave it out",
        ("none", True, "cpu"): "--compile needs a C++ compiler; install g++, or leave it out",
    }.items():
        with pytest.raises(ConfigError) as raised:
            check_request(*request)
        assert str(raised.value) == message
    with pytest.raises(ConfigError, match="needs a C"):
        optimize_for_inference(tiny_gpt(), compile=True)


def test_a_torch_without_the_operators_is_one_line_or_a_fallback(monkeypatch):
    monkeypatch.setattr(torch.ops, "aten", object())
    monkeypatch.setattr(torch.ops, "quantized", object())
    with pytest.raises(ConfigError, match=r"quantize = int4: not supported by torch .* here; use int8"):
        optimize_for_inference(tiny_gpt(), quantize="int4")
    assert len(new_tokens(Generator(optimize_for_inference(tiny_gpt(), quantize="int8")), GREEDY)[0]) == 40


_compile = torch.compile


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without generating and compiling C++; the list has an entry for each graph."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(len(inputs))
        return graph

    def compiled(function, *, dynamic, options):
        guards = {"guard_filter_fn": options["guard_filter_fn"]}  # the other options are inductor's
        return _compile(function, dynamic=dynamic, backend=backend, options=guards)

    monkeypatch.setattr(torch, "compile", compiled)
    yield graphs
    torch._dynamo.reset()


def test_one_graph_serves_every_length_and_the_text_is_the_same(traced):
    for number, variant in enumerate([{"n_layer": 1}, MODERN], start=1):
        model = tiny_gpt(**variant)
        compiled = Generator(optimize_for_inference(model, compile=True))
        assert new_tokens(compiled, GREEDY) == new_tokens(RecomputingGenerator(model), GREEDY), variant
        assert len(traced) == number


def test_neither_the_capacity_nor_a_view_as_token_makes_another_graph(traced):
    model, tokens = tiny_gpt(n_layer=1), random_tokens(1, 60)
    optimized = optimize_for_inference(model, compile=True)
    for capacity in (7, 20, 32):  # to its end
        compiled, eager = Generator(optimized, capacity), Generator(model, capacity)
        compiled.prefill(tokens[:, :1])
        eager.prefill(tokens[:, :1])
        for place in range(1, capacity):
            torch.testing.assert_close(compiled.decode(tokens[:, place]), eager.decode(tokens[:, place]))
    assert new_tokens(Generator(optimized), GREEDY) == new_tokens(Generator(model), GREEDY)
    assert len(traced) == 1


def test_a_second_model_does_not_get_the_code_compiled_for_the_first(traced):
    for width in (32, 16, 32):
        model = tiny_gpt(n_embd=width, n_layer=1)
        compiled = Generator(optimize_for_inference(model, compile=True))
        assert new_tokens(compiled, SHORT) == new_tokens(Generator(model), SHORT)
    assert len(traced) == 3


def test_a_compiled_model_that_is_converted_is_compiled_again(traced):
    model = tiny_gpt(n_layer=1)
    optimized = optimize_for_inference(model, compile=True)
    new_tokens(Generator(optimized), SHORT)
    expected = new_tokens(Generator(copy.deepcopy(model).double()), SHORT)
    for convert in (lambda: copy.deepcopy(optimized).double(), optimized.double):
        assert new_tokens(Generator(convert()), SHORT) == expected
    expected = new_tokens(Generator(copy.deepcopy(model).bfloat16()), GREEDY)
    assert new_tokens(Generator(optimized.bfloat16()), GREEDY) == expected
    assert len(traced) == 4


def test_batches_are_not_compiled_and_the_text_is_the_same(traced):
    model = tiny_gpt()
    compiled = Generator(optimize_for_inference(model, compile=True))
    assert new_tokens(compiled, GREEDY, [0, 1, 2]) == new_tokens(Generator(model), GREEDY, [0, 1, 2])
    assert traced == []
