"""Generation with a cache against generation without one, the window past the context limit, and samples as text."""

import inspect
import itertools
from pathlib import Path

import pytest
import torch
from tiny_generation import PROMPT, new_tokens, random_tokens, tiny_gpt
from torch import nn

from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError
from quillgpt.model.gpt import GPT
from quillgpt.model.positions import POSITIONS
from quillgpt.sample.engine import (
    SAMPLES_PER_BATCH,
    Generator,
    RecomputingGenerator,
    generate,
    generate_tokens,
    prompt_tokens,
    samples,
    stream,
)
from quillgpt.sample.sampling import sample_generator
from quillgpt.sample.settings import MAX_PROMPT_BYTES, SamplingSettings
from quillgpt.tokenizer import load_tokenizer

GENERATORS = (Generator, RecomputingGenerator)
END = 256


class Recorder(GPT):
    """A model that records the tokens of each call and the number of tokens in the cache."""

    def hidden(self, tokens, cache=None):
        self.__dict__.setdefault("calls", []).append((cache.length if cache else 0, tokens.tolist()))
        return super().hidden(tokens, cache)


def recorder(context_length):
    return Recorder(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=context_length, vocab_size=50)).eval()


def test_greedy_cached_generation_equals_recomputing_for_512_tokens():
    greedy = SamplingSettings(temperature=0, max_new_tokens=512)
    for position, context_length in itertools.product(POSITIONS, (32, 600)):
        model = tiny_gpt(position=position, context_length=context_length, n_embd=16, tied_head=False)
        cached = new_tokens(Generator(model), greedy)
        assert cached == new_tokens(RecomputingGenerator(model), greedy), (position, context_length)
        assert len(set(cached[0])) > 10, "the text settled on a few tokens, which would prove little"


def test_cached_logits_equal_recomputed_ones_in_float64():
    tokens, wrong = random_tokens(3, 60), []
    variants = itertools.product(enumerate(POSITIONS), enumerate(["layernorm", "rmsnorm"]), [False, True])
    for (i, position), (j, norm), qk_norm in variants:
        attention = ("softmax", "explicit")[(i + j + qk_norm) % 2]  # every pair of values occurs
        variant = {"position": position, "norm": norm, "qk_norm": qk_norm, "attention": attention}
        model = tiny_gpt(context_length=16, **variant).double()
        cached, recomputed = Generator(model), RecomputingGenerator(model)
        pairs = [(cached.prefill(tokens[:, :9]), recomputed.prefill(tokens[:, :9]))]
        pairs += [(cached.decode(step), recomputed.decode(step)) for step in tokens[:, 9:].T]
        wrong += [] if all((one - other).abs().max() < 1e-10 for one, other in pairs) else [variant]
    assert wrong == []


def test_a_full_window_keeps_its_last_half_and_restarts_at_position_0():
    for kind, context_length in itertools.product(GENERATORS, [1, 2, 3, 8, 9]):
        model = recorder(context_length)
        generator = kind(model)
        generator.prefill(torch.tensor([[0]]))
        window = [0]
        for token in range(1, 40):
            generator.decode(torch.tensor([token]))
            window.append(token)
            if len(window) > context_length:
                window = window[-max(1, context_length // 2) :]
            cached, shown = model.calls[-1]
            assert shown == [window if cached == 0 else window[-1:]], (kind, context_length)
            assert cached + len(shown[0]) == len(window)


def test_the_example_in_the_docstring_of_the_module():
    model = recorder(8)
    generator = Generator(model)
    generator.prefill(torch.tensor([list(b"abcdefgh")]) - 96)
    for letter in b"ijklm":
        generator.decode(torch.tensor([letter - 96]))
    assert model.calls[1] == (0, [[letter - 96 for letter in b"fghi"]])
    assert model.calls[-1] == (7, [[ord("m") - 96]])


def test_with_a_cache_each_new_token_is_encoded_once():
    model = recorder(64)
    new_tokens(Generator(model), SamplingSettings(max_new_tokens=30))
    assert [len(shown[0]) for _, shown in model.calls] == [len(PROMPT)] + [1] * 29


def test_the_last_context_length_tokens_of_a_long_prompt_are_read():
    model = tiny_gpt()
    for kind, length in itertools.product(GENERATORS, [1, 31, 32, 33, 500]):
        prompt = random_tokens(1, length)
        expected = model(prompt[:, -32:])[:, -1].detach()
        torch.testing.assert_close(kind(model).prefill(prompt), expected, rtol=1e-4, atol=1e-4)


def test_forked_sequences_equal_sequences_read_separately():
    model, steps = tiny_gpt().double(), random_tokens(40, 3)
    for kind in GENERATORS:
        forked, separate = kind(model), kind(model)
        forked.prefill(torch.tensor([PROMPT]))
        forked.fork(3)
        separate.prefill(torch.tensor([PROMPT] * 3))
        for step in steps:
            torch.testing.assert_close(forked.decode(step), separate.decode(step), rtol=1e-10, atol=1e-10)


def test_prefill_discards_earlier_tokens():
    model = tiny_gpt()
    for kind in GENERATORS:
        used, fresh = kind(model), kind(model)
        used.prefill(torch.tensor([[7, 8, 9], [7, 8, 9]]))
        used.decode(torch.tensor([1, 2]))
        for prompts in ([PROMPT], [PROMPT, PROMPT[::-1]]):
            assert used.prefill(torch.tensor(prompts)).equal(fresh.prefill(torch.tensor(prompts)))


def test_a_sample_depends_on_seed_and_index_and_not_on_the_number_of_samples():
    model = tiny_gpt(tied_head=False).double()
    settings = SamplingSettings(temperature=1.0, top_k=0, max_new_tokens=60, seed=1)
    together = new_tokens(Generator(model), settings, samples=range(5))
    assert together == [new_tokens(Generator(model), settings, samples=[sample])[0] for sample in range(5)]
    assert together[0] != new_tokens(Generator(model), SamplingSettings(temperature=1.0, top_k=0, max_new_tokens=60))[0]
    assert len({tuple(sample) for sample in together}) == 5


def test_the_random_numbers_are_those_of_the_sample_and_not_of_the_row():
    model = tiny_gpt(tied_head=False)
    settings = SamplingSettings(temperature=2.0, top_k=0, max_new_tokens=1, seed=9)
    probabilities = model(torch.tensor([PROMPT]))[0, -1].detach().double().div(2.0).softmax(-1)
    point = torch.rand(1, dtype=torch.float64, generator=sample_generator(9, 4))
    expected = int((probabilities.cumsum(-1) <= point).sum())
    assert new_tokens(Generator(model), settings, samples=[4]) == [[expected]]


def test_every_token_of_the_vocabulary_is_sampled_and_no_padding():
    model = tiny_gpt(context_length=16, tied_head=False)  # 64 rows, of which 14 are padding
    with torch.no_grad():
        model.head.weight[50:] = 100 * model.head.weight[:14]  # padding would be the most likely
    settings = SamplingSettings(temperature=2.0, top_k=0, max_new_tokens=100)
    tokens = new_tokens(Generator(model), settings, samples=range(100))
    assert set(itertools.chain(*tokens)) == set(range(50))


def test_generation_leaves_the_model_and_torchs_random_numbers_as_they_were():
    model, settings = tiny_gpt(dropout=0.5), SamplingSettings(max_new_tokens=40)
    expected = new_tokens(Generator(model), settings)
    model.train()
    torch.manual_seed(3)
    numbers = torch.rand(4)
    torch.manual_seed(3)
    assert new_tokens(Generator(model), settings) == expected, "dropout must be off"
    assert torch.rand(4).equal(numbers)
    assert all(module.training for module in model.modules())
    assert not Generator(model).prefill(torch.tensor([PROMPT])).requires_grad
    model(torch.tensor([PROMPT])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bf16_generates_with_a_cache_of_fp32_on_a_cpu():
    generator = Generator(tiny_gpt().bfloat16())
    tokens = new_tokens(generator, SamplingSettings(max_new_tokens=40), samples=range(2))
    assert [len(sample) for sample in tokens] == [40, 40]
    assert {tensor.dtype for tensor in generator._cache.keys + generator._cache.values} == {torch.float32}


def test_decoding_allocates_no_cache_and_no_window(monkeypatch):
    generator = Generator(tiny_gpt())
    generator.prefill(torch.tensor([PROMPT]))

    def addresses():
        return [tensor.data_ptr() for tensor in (generator._tokens, *generator._cache.keys, *generator._cache.values)]

    before = addresses()
    monkeypatch.setattr(torch, "empty", None)
    monkeypatch.setattr(torch, "zeros", None)
    for token in range(100):  # past the context limit
        generator.decode(torch.tensor([token % 50]))
        assert addresses() == before


def test_resident_memory_does_not_grow_with_the_tokens():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("no /proc here")
    model = tiny_gpt(n_embd=256, context_length=512, vocab_size=2)  # a cache of 2.1 MB
    tokens = generate_tokens(Generator(model), [0], SamplingSettings(max_new_tokens=500), [0])
    resident = [int(status.read_text().split("VmRSS:")[1].split()[0]) for _ in tokens]
    assert resident[-1] - resident[50] < 1024  # kilobytes


def test_tokens_beyond_the_capacity_are_a_value_error():
    generator = Generator(tiny_gpt(), capacity=8)
    assert generator._tokens.shape == (1, 8)
    generator.prefill(torch.tensor([PROMPT]))
    for _ in range(3):
        generator.decode(torch.tensor([1]))
    for read in (lambda: generator.decode(torch.tensor([1])), lambda: generator.prefill(torch.zeros(1, 9).long())):
        with pytest.raises(ValueError, match="got 9 tokens; the capacity of this generator is 8"):
            read()


class ScriptedModel(nn.Module):
    """A model that generates given tokens after any prompt, and records the prompts and the steps."""

    def __init__(self, text):
        super().__init__()
        self.config = ModelConfig(n_layer=1, n_head=1, n_embd=2, context_length=512, vocab_size=257)
        self.weight = nn.Parameter(torch.zeros(1))
        self.script, self.prompts, self.steps = [*text.encode(), END, *b"after the end"], [], 0

    def last_logits(self, tokens, cache=None):
        if cache.length == 0:
            self.prompts.append(tokens.tolist())
            self.steps = 0
        cache.advance(tokens.shape[1])
        logits = torch.full((len(tokens), 257), -torch.inf)
        logits[:, self.script[self.steps]] = 0.0
        self.steps += 1
        return logits


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("byte")


@pytest.fixture(scope="module")
def random_model():
    return tiny_gpt(1.0, n_layer=1, n_embd=16, vocab_size=257)


def test_a_sample_ends_at_end_of_text_after_max_new_tokens_or_before_a_stop_string(tokenizer):
    assert generate(ScriptedModel("once"), tokenizer, "x") == ["once"]
    assert generate(ScriptedModel("once upon"), tokenizer, max_new_tokens=6) == ["once u"]
    assert generate(ScriptedModel("one; two\n"), tokenizer, stop=["\n", "; "]) == ["one"]
    model = ScriptedModel("one\n\ntwo")
    assert generate(model, tokenizer, stop="\n\n") == ["one"]
    assert model.steps == 5, "nothing is computed after the end"


def test_a_prompt_is_its_tokens_and_an_empty_one_is_end_of_text(tokenizer):
    model = ScriptedModel("once")
    generate(model, tokenizer, "")
    generate(model, tokenizer, "é\0")
    assert model.prompts == [[[END]], [[0xC3, 0xA9, 0]]]
    assert END not in prompt_tokens(tokenizer, "<|endoftext|>")


def test_samples_are_in_order_whatever_their_number(random_model, tokenizer):
    texts = generate(random_model, tokenizer, "ab", num_samples=SAMPLES_PER_BATCH + 1, max_new_tokens=20)
    assert len(set(texts)) == SAMPLES_PER_BATCH + 1
    for count in (1, SAMPLES_PER_BATCH):
        assert generate(random_model, tokenizer, "ab", num_samples=count, max_new_tokens=20) == texts[:count]


def test_streamed_pieces_together_are_the_sample(random_model, tokenizer):
    for seed, stop in enumerate([(), ("e", "ab"), ("\x00", "\ufffd")]):
        settings = SamplingSettings(max_new_tokens=150, temperature=1.5, top_k=0, seed=seed, stop=stop)
        pieces = list(stream(random_model, tokenizer, [1, 2, 3], settings))
        assert "".join(pieces) == next(samples(random_model, tokenizer, [1, 2, 3], settings))


def test_a_finished_sample_does_not_end_the_others(random_model, tokenizer):
    options = {"max_new_tokens": 80, "temperature": 2.0, "top_k": 0, "num_samples": 6}
    texts = generate(random_model, tokenizer, **options)
    stop = texts[0][10]
    expected = [text.partition(stop)[0] for text in texts]
    assert generate(random_model, tokenizer, stop=stop, **options) == expected
    assert len({len(text) for text in expected}) > 1


def test_the_defaults_of_generate_are_those_of_the_settings():
    parameters = inspect.signature(generate).parameters
    defaults = {name: parameter.default for name, parameter in list(parameters.items())[3:]}
    assert defaults == vars(SamplingSettings())


def test_a_tokenizer_of_another_size_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="the model has 50 tokens and byte 257; use the one"):
        generate(tiny_gpt(), tokenizer, "a")


def test_an_invalid_prompt_is_refused_before_it_is_encoded():
    no_tokenizer = object()
    for prompt in ("é" * (MAX_PROMPT_BYTES // 2 + 1), "a" * 100_000_000):
        with pytest.raises(ConfigError, match=r"prompt of .* bytes is too long \(must be at most 1,000,000"):
            prompt_tokens(no_tokenizer, prompt)
    for prompt in ("\ud800", "a\udcff"):
        with pytest.raises(ConfigError, match=r"not valid UTF-8: .* at character [01]$"):
            prompt_tokens(no_tokenizer, prompt)
