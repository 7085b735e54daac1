"""From a prompt to texts, with a model that says what it is told to."""

import inspect

import pytest
import torch
from torch import nn

from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError, NonFiniteError
from quillgpt.model.gpt import GPT
from quillgpt.sample.generate import SAMPLES_AT_ONCE, generate, prompt_tokens, samples, stream
from quillgpt.sample.settings import MAX_PROMPT_BYTES, SamplingSettings
from quillgpt.tokenizer import load_tokenizer

END = 256


class Scripted(nn.Module):
    """A model that says given tokens, whatever the prompt; it notes the prompt."""

    def __init__(self, tokens):
        super().__init__()
        self.config = ModelConfig(n_layer=1, n_head=1, n_embd=2, context_length=512, vocab_size=257)
        self.weight = nn.Parameter(torch.zeros(1))
        self.script, self.prompts, self.said = tokens, [], 0

    def last_logits(self, tokens, cache=None):
        if cache.length == 0:
            self.prompts.append(tokens.tolist())
            self.said = 0
        cache.advance(tokens.shape[1])
        scripted = torch.full((len(tokens), 257), -torch.inf)
        scripted[:, self.script[self.said]] = 0.0
        self.said += 1
        return scripted


def says(text):
    return Scripted([*text.encode(), END, *b"after the end"])


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("byte")


@pytest.fixture(scope="module")
def random_model():
    torch.manual_seed(0)
    return GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=32, vocab_size=257)).eval()


def test_a_sample_ends_at_the_end_of_its_document(tokenizer):
    assert generate(says("once"), tokenizer, "x") == ["once"]


def test_a_sample_ends_after_max_new_tokens(tokenizer):
    assert generate(says("once upon"), tokenizer, max_new_tokens=6) == ["once u"]


def test_a_sample_ends_before_a_stop_string(tokenizer):
    assert generate(says("one\n\ntwo"), tokenizer, stop="\n\n") == ["one"]
    assert generate(says("one; two\n"), tokenizer, stop=["\n", "; "]) == ["one"]


def test_nothing_is_computed_after_the_end(tokenizer):
    model = says("one\n\ntwo")
    generate(model, tokenizer, stop="\n\n")
    assert model.said == 5


def test_an_empty_prompt_is_the_end_of_text_token(tokenizer):
    model = says("once")
    generate(model, tokenizer, "")
    assert model.prompts == [[[END]]]


def test_a_prompt_is_given_as_its_tokens_alone(tokenizer):
    model = says("once")
    generate(model, tokenizer, "é\0")
    assert model.prompts == [[[0xC3, 0xA9, 0]]]


def test_the_end_of_text_mark_in_a_prompt_is_text(tokenizer):
    assert END not in prompt_tokens(tokenizer, "<|endoftext|>")


@pytest.mark.parametrize("count", [1, SAMPLES_AT_ONCE, SAMPLES_AT_ONCE + 1])
def test_as_many_samples_as_asked_come_in_order(random_model, tokenizer, count):
    texts = generate(random_model, tokenizer, "ab", num_samples=count, max_new_tokens=20)
    more = generate(random_model, tokenizer, "ab", num_samples=SAMPLES_AT_ONCE + 1, max_new_tokens=20)
    assert texts == more[:count]
    assert len(set(more)) == SAMPLES_AT_ONCE + 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stop", [(), ("e", "ab"), ("\x00", "\ufffd")])
def test_streamed_pieces_together_are_the_sample(random_model, tokenizer, seed, stop):
    settings = SamplingSettings(max_new_tokens=150, temperature=1.5, top_k=0, seed=seed, stop=stop)
    pieces = list(stream(random_model, tokenizer, [1, 2, 3], settings))
    assert "".join(pieces) == next(samples(random_model, tokenizer, [1, 2, 3], settings))


def test_one_finished_sample_does_not_end_the_others(random_model, tokenizer):
    options = {"max_new_tokens": 80, "temperature": 2.0, "top_k": 0, "num_samples": 6}
    whole = generate(random_model, tokenizer, **options)
    stop = whole[0][10]
    expected = [text.partition(stop)[0] for text in whole]
    assert generate(random_model, tokenizer, stop=stop, **options) == expected
    assert len({len(text) for text in expected}) > 1


def test_the_defaults_of_generate_are_those_of_the_settings():
    defaults = SamplingSettings()
    for name, parameter in inspect.signature(generate).parameters.items():
        if name not in ("model", "tokenizer", "prompt"):
            assert parameter.default == getattr(defaults, name)


def test_a_tokenizer_of_another_size_is_refused(tokenizer):
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=50))
    with pytest.raises(ConfigError, match="the model has 50 tokens and byte 257"):
        generate(model, tokenizer, "a")


def test_a_damaged_model_is_one_clear_error(random_model, tokenizer):
    torch.manual_seed(0)
    model = GPT(random_model.config)
    with torch.no_grad():
        model.final_norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="NaN"):
        generate(model, tokenizer, "a")


def test_a_prompt_above_the_limit_is_refused_before_it_is_cut_into_tokens():
    class NoTokenizer:
        pass

    for prompt in ("é" * (MAX_PROMPT_BYTES // 2 + 1), "a" * 100_000_000):
        with pytest.raises(ConfigError, match=r"prompt of .* bytes is too long: expected at most 1,000,000"):
            prompt_tokens(NoTokenizer(), prompt)


@pytest.mark.parametrize("prompt", ["\ud800", "a\udcff"])
def test_a_prompt_with_lone_surrogates_is_one_clear_error(tokenizer, prompt):
    with pytest.raises(ConfigError, match=r"not valid UTF-8: .* at character [01]$"):
        generate(says("x"), tokenizer, prompt)
