"""A model made ready to generate: compiled, of one size in memory, and no slower way left in the step of a token."""

import copy
from pathlib import Path

import pytest
import torch

from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError
from quillgpt.model.gpt import GPT
from quillgpt.sample.generator import Generator, RecomputingGenerator, continued
from quillgpt.sample.prepare import check_request, prepared
from quillgpt.sample.settings import SamplingSettings

PROMPT = [3, 1, 4, 1, 5]
GREEDY = SamplingSettings(temperature=0, max_new_tokens=40)
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


def tiny(**changes):
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32, "vocab_size": 50}
    torch.manual_seed(0)
    model = GPT(ModelConfig(**(shape | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    return model


def greedy(generator, samples=(0,), settings=GREEDY):
    return torch.stack(list(continued(generator, PROMPT, settings, samples)), dim=1).tolist()


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without writing and compiling C++; the list has a line for each time it was at work."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(len(inputs))
        return graph

    def compiled(function, *, dynamic, options):
        guards = {"guard_filter_fn": options["guard_filter_fn"]}  # the rest is for the usual backend
        return _compile(function, dynamic=dynamic, backend=backend, options=guards)

    monkeypatch.setattr(torch, "compile", compiled)
    yield graphs
    torch._dynamo.reset()


_compile = torch.compile


@pytest.mark.parametrize("changes", [{}, MODERN], ids=["gpt2", "modern"])
def test_one_graph_does_for_every_length_and_the_text_is_the_same(traced, changes):
    model = tiny(**changes)
    assert greedy(Generator(prepared(model, compile=True))) == greedy(RecomputingGenerator(model))
    assert len(traced) == 1


def test_neither_the_room_nor_where_a_token_lies_makes_another_graph(traced):
    model = tiny()
    ready = prepared(model, compile=True)
    pieces = torch.randint(0, 50, (1, 60), generator=torch.Generator().manual_seed(1))
    for room in (7, 20, 32):  # to its end
        compiled, plain = Generator(ready, room), Generator(model, room)
        compiled.prefill(pieces[:, :1])
        plain.prefill(pieces[:, :1])
        for place in range(1, room):
            torch.testing.assert_close(compiled.decode(pieces[:, place]), plain.decode(pieces[:, place]))
    assert greedy(Generator(ready)) == greedy(Generator(model))
    assert len(traced) == 1


def test_a_second_model_is_not_given_what_was_compiled_for_the_first(traced):
    for width in (32, 16, 32):
        model = tiny(n_embd=width, n_layer=1)
        assert greedy(Generator(prepared(model, compile=True))) == greedy(Generator(model))
    assert len(traced) == 3


def test_a_compiled_model_that_is_converted_or_copied_and_converted_is_compiled_again(traced):
    model = tiny()
    ready = prepared(model, compile=True)
    greedy(Generator(ready))
    for convert in (lambda: copy.deepcopy(ready).double(), ready.double):
        assert greedy(Generator(convert())) == greedy(Generator(copy.deepcopy(model).double()))
    assert greedy(Generator(ready.bfloat16())) == greedy(Generator(copy.deepcopy(model).bfloat16()))
    assert len(traced) == 4


def test_several_sequences_are_not_compiled_and_the_same(traced):
    model = tiny()
    assert greedy(Generator(prepared(model, compile=True)), [0, 1, 2]) == greedy(Generator(model), [0, 1, 2])
    assert traced == []


def test_compiling_without_a_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr("quillgpt.hardware._has_compiler", lambda: False)
    with pytest.raises(ConfigError, match=r"compile: there is no C\+\+ compiler here; install g\+\+, or leave it out"):
        prepared(tiny(), compile=True)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantised_weights_elsewhere_than_on_the_cpu_are_one_line(name):
    with pytest.raises(ConfigError, match=f"quantize = {name} works on the CPU only, the device is cuda"):
        check_request(name, False, "cuda")


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_torch_without_the_operators_is_a_line_or_another_way(monkeypatch, name):
    class Without:
        def __getattr__(self, operator):
            raise AttributeError(operator)

    monkeypatch.setattr(torch.ops, "aten" if name == "int4" else "quantized", Without())
    if name == "int4":
        with pytest.raises(ConfigError, match=r"quantize = int4: torch .* cannot do it here; use int8"):
            prepared(tiny(), quantize=name)
    else:
        text = greedy(Generator(prepared(tiny(), quantize=name)))
        assert len(text[0]) == GREEDY.max_new_tokens


def test_a_generator_takes_no_memory_for_a_token(monkeypatch):
    """Neither the cache nor the window is made anew or longer, also where the window is cut."""
    generator = Generator(tiny())
    generator.prefill(torch.tensor([PROMPT]))

    def places():
        return [tensor.data_ptr() for tensor in (generator._tokens, *generator._cache.keys, *generator._cache.values)]

    before = places()
    monkeypatch.setattr(torch, "empty", None)
    monkeypatch.setattr(torch, "zeros", None)
    for token in range(100):
        generator.decode(torch.tensor([token % 50]))
        assert places() == before


def test_resident_memory_does_not_grow_over_a_thousand_tokens():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("no /proc here")
    model = tiny(n_layer=1, n_embd=384, context_length=1024, vocab_size=2)  # the cache has 3.1 MB
    tokens = continued(Generator(model), [0], SamplingSettings(max_new_tokens=1000), [0])
    held = [int(status.read_text().split("VmRSS:")[1].split()[0]) for _ in tokens]
    assert held[-1] - held[50] < 1024  # kilobytes


def test_the_room_is_what_the_caller_said_and_more_is_a_value_error():
    generator = Generator(tiny(), room=8)
    assert generator._cache.room == 8
    generator.prefill(torch.tensor([PROMPT]))
    for _ in range(3):
        generator.decode(torch.tensor([1]))
    with pytest.raises(ValueError, match="got 9 tokens; this generator was made with room for 8"):
        generator.decode(torch.tensor([1]))
    with pytest.raises(ValueError, match="got 9 tokens"):
        generator.prefill(torch.zeros(1, 9, dtype=torch.int64))


def test_keys_of_bf16_are_kept_in_fp32_on_a_cpu():
    generator = Generator(prepared(tiny(), dtype=torch.bfloat16))
    assert generator._cache.keys[0].dtype == torch.float32
