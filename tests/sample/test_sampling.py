"""From logits to tokens, compared with the definitions computed slowly."""

import itertools
import math

import pytest
import torch

from quillgpt.errors import NonFiniteError
from quillgpt.sample.sampling import (
    keep_top_p,
    multinomial,
    sample_generator,
    sample_tokens,
    top_k_logits,
    with_temperature,
)
from quillgpt.sample.settings import SamplingSettings

ROWS, VOCABULARY, COUNT = 4, 37, 20_000


@pytest.fixture
def logits():
    return torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(5)) * 3


def sampled(logits, seed=1, **settings):
    generators = [sample_generator(seed, sample) for sample in range(len(logits))]
    return sample_tokens(logits, SamplingSettings(**settings), generators)


def sampled_often(row, **settings):
    """Tokens sampled from the same logits (1, V) with one sequence of random numbers."""
    return sample_tokens(row.expand(COUNT, -1), SamplingSettings(**settings), [sample_generator(0, 0)] * COUNT)


def smallest_set(probabilities, p):
    """The definition of top-p, a token at a time."""
    kept, total = [], 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        if total >= p:
            break
        kept.append(token)
        total += probabilities[token]
    return sorted(kept)


def test_settings_that_leave_one_token_are_greedy(logits):
    greedy = torch.tensor([max(range(VOCABULARY), key=row.__getitem__) for row in logits.tolist()])
    assert sampled(logits, temperature=0).equal(greedy)
    for seed, temperature in itertools.product(range(5), [0.3, 1.0, 2.0]):
        assert sampled(logits, seed, temperature=temperature, top_k=1).equal(greedy)
    for temperature in (5e-324, 1e-300, 1e-30, 1e-6):
        assert sampled(logits, temperature=temperature, top_k=0).equal(greedy)
    for top_p in (1e-300, 1e-9):
        assert sampled(logits, temperature=1.0, top_k=0, top_p=top_p).equal(greedy)


def test_top_k_keeps_the_k_largest_in_the_order_of_tokens(logits):
    for k in (1, 2, 10, VOCABULARY - 1, VOCABULARY, VOCABULARY + 1, 10**30, 0):
        kept, tokens = top_k_logits(logits, k)
        expected = [
            sorted(sorted(range(VOCABULARY), key=lambda token: -row[token])[: k or VOCABULARY])
            for row in logits.tolist()
        ]
        assert tokens.tolist() == expected, k
        assert kept.equal(logits.gather(-1, tokens))


def test_top_k_keeps_exactly_k_of_equal_logits():
    kept, tokens = top_k_logits(torch.zeros(2, 9), 4)
    assert kept.equal(torch.zeros(2, 4))
    assert [len(set(row)) for row in tokens.tolist()] == [4, 4]


def test_top_p_keeps_the_smallest_set_with_that_probability(logits):
    for p, k in itertools.product([0.05, 0.5, 0.9, 0.999], [0, 5]):
        candidates, _ = top_k_logits(logits.double(), k)
        kept = keep_top_p(candidates, p) > -torch.inf
        expected = [smallest_set(row, p) for row in candidates.softmax(-1).tolist()]
        assert [row.nonzero().flatten().tolist() for row in kept] == expected, (p, k)
    assert keep_top_p(logits, 1.0).equal(logits)


def test_temperature_divides_the_logits(logits):
    scaled = with_temperature(logits, 0.7).softmax(-1)
    torch.testing.assert_close(scaled, (logits.double() / 0.7).softmax(-1), rtol=1e-10, atol=1e-12)


def test_tokens_are_sampled_as_often_as_the_filtered_probabilities(logits):
    logits[:, 7] = -torch.inf  # never sampled
    for top_k, top_p in ((3, 1.0), (0, 0.7), (4, 0.8), (0, 1.0)):
        weights = (logits[0].double() / 1.7).exp().tolist()
        order = sorted(range(VOCABULARY), key=lambda token: -weights[token])[: top_k or VOCABULARY]
        total = sum(weights[token] for token in order)
        kept = [order[place] for place in smallest_set([weights[token] / total for token in order], top_p)]
        tokens = sampled_often(logits[:1], temperature=1.7, top_k=top_k, top_p=top_p)
        for token, count in enumerate(torch.bincount(tokens, minlength=VOCABULARY).tolist()):
            share = weights[token] / sum(weights[one] for one in kept) if token in kept else 0.0
            assert abs(count / COUNT - share) <= 5 * math.sqrt(share * (1 - share) / COUNT), (top_k, top_p, token)


def test_a_token_of_probability_0_is_never_sampled_not_even_at_the_ends():
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    points = [0.0, 0.2, 0.25, 0.5, 1 - 2**-53]
    found = [multinomial(probabilities, torch.tensor([[point]], dtype=torch.float64)).item() for point in points]
    assert found == [1, 1, 3, 3, 3]


def test_logits_that_differ_by_rounding_seldom_give_another_token():
    logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(1))
    rounded = logits + 1e-6 * torch.randn(1, 3000, generator=torch.Generator().manual_seed(2))
    assert (sampled_often(logits) != sampled_often(rounded)).sum() <= 10


def test_non_finite_logits_are_one_error(logits):
    for temperature in (0.0, 1.0):
        for bad in (torch.nan, torch.inf, "a row of -inf"):
            damaged = logits.clone()
            damaged[2] = -torch.inf if isinstance(bad, str) else damaged[2]
            damaged[2, 7] = -torch.inf if isinstance(bad, str) else bad
            with pytest.raises(NonFiniteError, match=r"^[^\n]*logits are NaN or infinite[^\n]*checkpoint$"):
                sampled(damaged, temperature=temperature)


def test_logits_of_any_dtype_are_sampled_and_not_changed(logits):
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        given = logits.to(dtype)
        before = given.clone()
        assert sampled(given, top_k=3, top_p=0.5).shape == (ROWS,)
        assert given.equal(before)


def test_every_sample_has_its_own_random_numbers():
    first = [torch.rand(8, generator=sample_generator(seed, sample)) for seed in (1, 2) for sample in range(3)]
    assert len({tuple(numbers.tolist()) for numbers in first}) == 6
