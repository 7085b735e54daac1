"""Generation with a cache against generation without one, and the window past the context limit."""

import itertools
import math

import pytest
import torch

from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT
from quillgpt.model.positions import POSITIONS
from quillgpt.sample.generator import Generator, RecomputingGenerator, continued
from quillgpt.sample.sampling import sample_generator
from quillgpt.sample.settings import SamplingSettings

GREEDY = SamplingSettings(temperature=0, max_new_tokens=512)
PROMPT = [3, 1, 4, 1, 5]


def tiny_model(**changes):
    """A random model whose greedy text does not settle on one token: spread weights, and a head that is not tied."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32, "vocab_size": 50, "tied_head": False}
    settings = shape | changes
    torch.manual_seed(0)
    model = GPT(ModelConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


def tokens_of(generator, settings, prompt=PROMPT, samples=(0,)):
    """All new tokens: a list for each sample."""
    return torch.stack(list(continued(generator, prompt, settings, samples)), dim=1).tolist()


class Recorder(GPT):
    """A model that notes what it is shown and after how many tokens in the cache."""

    def hidden(self, tokens, cache=None):
        self.__dict__.setdefault("seen", []).append((cache.length if cache else 0, tokens.tolist()))
        return super().hidden(tokens, cache)


def recorder(context_length):
    torch.manual_seed(0)
    return Recorder(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=context_length, vocab_size=50)).eval()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("context_length", [32, 600], ids=["past_the_context_limit", "within_the_context"])
def test_greedy_cached_generation_equals_recomputing_for_512_tokens(position, context_length):
    model = tiny_model(position=position, context_length=context_length)
    cached = tokens_of(Generator(model), GREEDY)
    assert cached == tokens_of(RecomputingGenerator(model), GREEDY)
    assert len(set(cached[0])) > 10, "the text settled on a few tokens, which would prove little"


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("attention", ["softmax", "explicit"])
def test_cached_logits_equal_recomputed_ones_in_float64(position, norm, qk_norm, attention):
    changes = {"position": position, "norm": norm, "qk_norm": qk_norm, "attention": attention}
    model = tiny_model(context_length=16, **changes).double()
    cached, recomputed = Generator(model), RecomputingGenerator(model)
    tokens = torch.randint(0, 50, (3, 60), generator=torch.Generator().manual_seed(2))
    difference = (cached.prefill(tokens[:, :9]) - recomputed.prefill(tokens[:, :9])).abs().max()
    for place in range(9, 60):
        step = tokens[:, place]
        difference = max(difference, (cached.decode(step) - recomputed.decode(step)).abs().max())
    assert difference < 1e-10


@pytest.mark.parametrize("generator", [Generator, RecomputingGenerator])
@pytest.mark.parametrize("context_length", [1, 2, 3, 8, 9])
def test_a_full_window_keeps_its_last_half_and_begins_again_at_position_0(generator, context_length):
    model = recorder(context_length)
    tokens = list(range(40))
    running = generator(model)
    running.prefill(torch.tensor([tokens[:1]]))
    expected = tokens[:1]
    for token in tokens[1:]:
        running.decode(torch.tensor([token]))
        expected = [*expected, token]
        if len(expected) > context_length:
            expected = expected[-max(1, context_length // 2) :]
        held, shown = model.seen[-1]
        window = expected if held == 0 else expected[-1:]
        assert shown == [window]
        assert held + len(shown[0]) == len(expected)


def test_the_picture_in_the_module_s_docstring():
    model = recorder(8)
    running = Generator(model)
    running.prefill(torch.tensor([list(b"abcdefgh")]) - 96)
    running.decode(torch.tensor([ord("i") - 96]))
    assert model.seen[-1] == (0, [[token - 96 for token in b"fghi"]])
    for letter in b"jklm":
        running.decode(torch.tensor([letter - 96]))
    assert model.seen[-1] == (7, [[ord("m") - 96]])


def test_with_a_cache_each_new_token_is_encoded_once():
    model = recorder(64)
    tokens_of(Generator(model), SamplingSettings(max_new_tokens=30))
    assert [len(shown[0]) for _, shown in model.seen] == [len(PROMPT)] + [1] * 29


@pytest.mark.parametrize("generator", [Generator, RecomputingGenerator])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 500])
def test_of_a_long_prompt_the_last_context_length_tokens_are_read(generator, length):
    model = tiny_model()
    prompt = torch.randint(0, 50, (1, length), generator=torch.Generator().manual_seed(2))
    logits = generator(model).prefill(prompt)
    torch.testing.assert_close(logits, model(prompt[:, -32:])[:, -1].detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("generator", [Generator, RecomputingGenerator])
def test_forked_sequences_go_on_as_if_each_had_been_read(generator):
    model = tiny_model().double()
    prompt, steps = torch.tensor([PROMPT]), torch.randint(0, 50, (40, 3), generator=torch.Generator().manual_seed(2))
    forked, separate = generator(model), generator(model)
    forked.prefill(prompt)
    forked.fork(3)
    separate.prefill(prompt.expand(3, -1))
    for step in steps:
        torch.testing.assert_close(forked.decode(step), separate.decode(step), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("generator", [Generator, RecomputingGenerator])
def test_prefill_forgets_what_was_read_before(generator):
    model = tiny_model()
    used, fresh = generator(model), generator(model)
    used.prefill(torch.tensor([[7, 8, 9], [7, 8, 9]]))
    used.decode(torch.tensor([1, 2]))
    for prompt in ([PROMPT], [PROMPT, PROMPT[::-1]]):
        assert used.prefill(torch.tensor(prompt)).equal(fresh.prefill(torch.tensor(prompt)))


def test_a_sample_does_not_depend_on_how_many_are_drawn():
    model = tiny_model().double()
    settings = SamplingSettings(temperature=1.0, top_k=0, max_new_tokens=100)
    together = tokens_of(Generator(model), settings, samples=range(5))
    alone = [tokens_of(Generator(model), settings, samples=[sample])[0] for sample in range(5)]
    assert together == alone
    assert len({tuple(sample) for sample in alone}) == 5


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    model = tiny_model()
    first, again, other = (
        tokens_of(Generator(model), SamplingSettings(seed=seed, max_new_tokens=50)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_sampling_leaves_torch_s_own_random_numbers_alone():
    model = tiny_model()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    tokens_of(Generator(model), SamplingSettings(max_new_tokens=10))
    assert torch.rand(4).equal(expected)


def test_ten_thousand_tokens_of_a_random_model_are_all_in_the_vocabulary():
    model = tiny_model(vocab_size=50, context_length=16)  # 64 rows, of which 14 are padding
    with torch.no_grad():
        model.head.weight[50:] = 100 * model.head.weight[:14]  # what must never be drawn would be the likeliest
    settings = SamplingSettings(temperature=2.0, top_k=0, max_new_tokens=100)
    tokens = tokens_of(Generator(model), settings, samples=range(100))
    assert set(itertools.chain(*tokens)) == set(range(50))


def test_dropout_is_off_while_generating_and_the_model_s_mode_is_kept():
    model = tiny_model(dropout=0.5)
    expected = tokens_of(Generator(model), GREEDY)
    model.train()
    assert tokens_of(Generator(model), GREEDY) == expected
    assert model.training
    assert all(module.training for module in model.modules())


def test_no_gradient_is_kept():
    generator = Generator(tiny_model())
    assert not generator.prefill(torch.tensor([PROMPT])).requires_grad


def test_a_model_can_be_trained_after_generating():
    model = tiny_model()
    tokens_of(Generator(model), SamplingSettings(max_new_tokens=5))
    model(torch.tensor([PROMPT])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bf16_generates():
    tokens = tokens_of(Generator(tiny_model().bfloat16()), SamplingSettings(max_new_tokens=40), samples=range(2))
    assert [len(sample) for sample in tokens] == [40, 40]


def test_the_random_numbers_are_those_of_the_sample_and_not_of_the_row():
    model = tiny_model()
    settings = SamplingSettings(temperature=2.0, top_k=0, max_new_tokens=20, seed=9)
    tokens = tokens_of(Generator(model), settings, samples=[4])[0]
    probabilities = model(torch.tensor([PROMPT]))[0, -1].detach().double().div(2.0).softmax(-1)
    point = torch.rand(1, dtype=torch.float64, generator=sample_generator(9, 4))
    assert tokens[0] == int((probabilities.cumsum(-1) <= point).sum())
    assert math.isclose(float(probabilities.sum()), 1.0, rel_tol=1e-9)
