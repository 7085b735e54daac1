"""From logits to tokens, compared with the definitions done slowly."""

import math

import pytest
import torch

from quillgpt.errors import NonFiniteError
from quillgpt.sample.sampling import choose, drawn, keep_top_p, largest, sample_generator, with_temperature
from quillgpt.sample.settings import SamplingSettings

ROWS, VOCABULARY = 4, 37


@pytest.fixture
def logits():
    return torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(5)) * 3


def generators(count, seed=1):
    return [sample_generator(seed, sample) for sample in range(count)]


def fewest_with_probability(probabilities, p):
    """The definition of top-p, a token at a time."""
    kept, together = [], 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        if together >= p:
            break
        kept.append(token)
        together += probabilities[token]
    return sorted(kept)


def test_temperature_zero_takes_the_likeliest_token_of_each_row(logits):
    tokens = choose(logits, SamplingSettings(temperature=0), generators(ROWS))
    assert tokens.tolist() == [max(range(VOCABULARY), key=row.__getitem__) for row in logits.tolist()]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_top_k_1_is_greedy_at_any_temperature(logits, temperature, seed):
    settings = SamplingSettings(temperature=temperature, top_k=1)
    assert choose(logits, settings, generators(ROWS, seed)).equal(logits.argmax(-1))


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy_and_not_infinite(logits, temperature):
    settings = SamplingSettings(temperature=temperature, top_k=0)
    assert choose(logits, settings, generators(ROWS)).equal(logits.argmax(-1))


@pytest.mark.parametrize("top_p", [1e-300, 1e-9])
def test_a_tiny_top_p_is_greedy(logits, top_p):
    settings = SamplingSettings(temperature=1.0, top_k=0, top_p=top_p)
    assert choose(logits, settings, generators(ROWS)).equal(logits.argmax(-1))


@pytest.mark.parametrize("k", [1, 2, 10, VOCABULARY - 1])
def test_top_k_keeps_the_k_largest(logits, k):
    kept, tokens = largest(logits, k)
    expected = [sorted(sorted(range(VOCABULARY), key=lambda token: -row[token])[:k]) for row in logits.tolist()]
    assert tokens.tolist() == expected
    assert kept.equal(logits.gather(-1, tokens))


@pytest.mark.parametrize("k", [0, VOCABULARY, VOCABULARY + 1, 10**30])
def test_top_k_of_0_or_above_the_vocabulary_keeps_all(logits, k):
    kept, tokens = largest(logits, k)
    assert kept.equal(logits)
    assert tokens.tolist() == [list(range(VOCABULARY))] * ROWS


def test_top_k_keeps_exactly_k_of_equal_logits():
    kept, tokens = largest(torch.zeros(2, 9), 4)
    assert kept.equal(torch.zeros(2, 4))
    assert [len(set(row)) for row in tokens.tolist()] == [4, 4]


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("k", [0, 5])
def test_top_p_keeps_the_fewest_tokens_with_that_probability(logits, p, k):
    candidates, _ = largest(logits.double(), k)
    kept = keep_top_p(candidates, p) > -torch.inf
    expected = [fewest_with_probability(row, p) for row in candidates.softmax(-1).tolist()]
    assert [row.nonzero().flatten().tolist() for row in kept] == expected


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.7), (4, 0.8), (0, 1.0)])
def test_draws_are_the_tokens_that_the_filters_leave_as_often_as_their_probability(logits, top_k, top_p):
    row, draws, temperature = logits[:1], 20_000, 1.7
    scaled = (row[0].double() / temperature).tolist()
    order = sorted(range(VOCABULARY), key=lambda token: -scaled[token])[: top_k or VOCABULARY]
    weights = {token: math.exp(scaled[token]) for token in order}
    shares = [weights[token] / sum(weights.values()) for token in order]
    kept = [order[place] for place in fewest_with_probability(shares, top_p)]
    settings = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p)
    tokens = choose(row.expand(draws, -1), settings, [sample_generator(0, 0)] * draws)
    counts = torch.bincount(tokens, minlength=VOCABULARY).tolist()
    for token, count in enumerate(counts):
        share = weights[token] / sum(weights[one] for one in kept) if token in kept else 0.0
        assert abs(count / draws - share) <= 5 * math.sqrt(share * (1 - share) / draws)


def test_a_draw_hits_nothing_of_probability_0_not_even_at_the_ends():
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    points = [0.0, 0.2, 0.25, 0.5, 1 - 2**-53]
    found = [drawn(probabilities, torch.tensor([[point]], dtype=torch.float64)).item() for point in points]
    assert found == [1, 1, 3, 3, 3]


def test_logits_that_differ_by_rounding_seldom_draw_another_token():
    logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(1))
    other = logits + 1e-6 * torch.randn(1, 3000, generator=torch.Generator().manual_seed(2))
    same = [
        choose(one.expand(2000, -1), SamplingSettings(), [sample_generator(1, 0)] * 2000) for one in (logits, other)
    ]
    assert (same[0] != same[1]).sum() <= 1


def test_top_p_of_1_keeps_all(logits):
    assert keep_top_p(logits, 1.0).equal(logits)


def test_temperature_divides_the_logits(logits):
    scaled = with_temperature(logits, 0.7).softmax(-1)
    torch.testing.assert_close(scaled, (logits.double() / 0.7).softmax(-1), rtol=1e-10, atol=1e-12)


def test_tokens_come_as_often_as_their_probability():
    draws, temperature = 20_000, 1.3
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
    settings = SamplingSettings(temperature=temperature, top_k=0)
    tokens = choose(logits.expand(draws, -1), settings, [sample_generator(0, 0)] * draws)
    weights = [math.exp(logit / temperature) for logit in logits.tolist()]
    counts = torch.bincount(tokens, minlength=5).tolist()
    for count, weight in zip(counts, weights, strict=True):
        share = weight / sum(weights)
        assert abs(count / draws - share) < 5 * math.sqrt(share * (1 - share) / draws) + 1e-12


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_one_clear_error(logits, bad, temperature):
    logits[2, 7] = bad
    with pytest.raises(NonFiniteError, match=r"logits are NaN or infinite.*checkpoint") as caught:
        choose(logits, SamplingSettings(temperature=temperature), generators(ROWS))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_minus_infinity_is_one_clear_error(logits, temperature):
    logits[1] = -torch.inf
    with pytest.raises(NonFiniteError):
        choose(logits, SamplingSettings(temperature=temperature), generators(ROWS))


def test_the_logits_are_left_as_they_were(logits):
    before = logits.clone()
    choose(logits, SamplingSettings(top_k=3, top_p=0.5), generators(ROWS))
    assert logits.equal(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_precision_are_drawn_from(logits, dtype):
    assert choose(logits.to(dtype), SamplingSettings(top_p=0.9), generators(ROWS)).shape == (ROWS,)


def test_every_sample_has_its_own_random_numbers():
    first = [torch.rand(8, generator=sample_generator(seed, sample)) for seed in (1, 2) for sample in range(3)]
    assert len({tuple(numbers.tolist()) for numbers in first}) == 6
