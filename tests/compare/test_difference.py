"""Intervals against scipy's, and against what they promise: how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from quillgpt.compare.difference import (
    MOST_SEEDS,
    Interval,
    Sample,
    holm,
    is_paired,
    paired,
    seeds_needed,
    welch,
)
from quillgpt.student_t import two_sided_quantile

SIMULATED = 1000


def sample(values, first_seed: int = 1) -> Sample:
    return Sample(by_seed=dict(enumerate(map(float, values), start=first_seed)))


def draws(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 0.04, n)


@pytest.mark.parametrize(("n_baseline", "n_other"), [(2, 2), (3, 3), (3, 8), (10, 2), (40, 41)])
def test_welch_equals_scipys(n_baseline: int, n_other: int) -> None:
    baseline, other = draws(1, n_baseline), 3 * draws(2, n_other) - 5
    expected = stats.ttest_ind(other, baseline, equal_var=False)
    found = welch(sample(baseline), sample(other))
    assert found.p == pytest.approx(float(expected.pvalue), rel=1e-8)
    assert found.degrees_of_freedom == pytest.approx(float(expected.df), rel=1e-10)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((float(low), float(high)), rel=1e-8)
    assert found.difference == pytest.approx(other.mean() - baseline.mean())


@pytest.mark.parametrize("n", [2, 3, 12])
def test_paired_equals_scipys(n: int) -> None:
    baseline, other = draws(1, n), draws(2, n)
    expected = stats.ttest_rel(other, baseline)
    found = paired(sample(baseline), Sample(by_seed=dict(reversed(sample(other).by_seed.items()))))
    assert found.p == pytest.approx(float(expected.pvalue), rel=1e-8)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((float(low), float(high)), rel=1e-8)


def interval(baseline: Sample, other: Sample) -> Interval:
    return paired(baseline, other) if is_paired(baseline, other) else welch(baseline, other)


@pytest.mark.parametrize(
    ("n", "spread", "shared", "first_seed", "difference"),
    [
        (3, 1.0, 0.0, 1, 0.0),
        (3, 1.0, 0.9, 1, 0.03),
        (5, 2.0, 0.6, 1, 0.0),
        (5, 1.0, 0.0, 100, 0.0),
        (6, 3.0, 0.0, 100, 0.03),
    ],
    ids=["same seeds", "same seeds, shared luck", "unequal spread", "other seeds", "other seeds, unequal spread"],
)
def test_the_interval_holds_the_truth_in_95_of_100(
    n: int, spread: float, shared: float, first_seed: int, difference: float
) -> None:
    """With no difference, what is outside is a false verdict: about 5 of 100. Two standard errors here are 0.014."""
    random = np.random.default_rng(7)
    held = 0
    for _ in range(SIMULATED):
        luck, own = random.normal(0, 0.04, (2, n))
        baseline = sample(random.normal(0, 0.04, n) * math.sqrt(1 - shared) + luck * math.sqrt(shared))
        other = sample(difference + spread * (own * math.sqrt(1 - shared) + luck * math.sqrt(shared)), first_seed)
        found = interval(baseline, other)
        held += found.low <= difference <= found.high
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
    assert 0.935 <= held / SIMULATED <= 0.97


def test_pairs_decide_where_both_have_the_same_three_seeds_or_more() -> None:
    assert is_paired(sample([1, 2, 3]), sample([3, 2, 1]))
    assert not is_paired(sample([1, 2]), sample([3, 2]))
    assert not is_paired(sample([1, 2, 3]), sample([3, 2, 1], first_seed=2))
    assert not is_paired(sample([1, 2, 3]), sample([3, 2, 1, 0]))


@pytest.mark.parametrize("first_seed", [1, 100], ids=["paired", "Welch"])
@pytest.mark.parametrize("difference", [0.02, 0.03, 0.09])
def test_the_seeds_needed_are_the_first_with_a_half_width_below_the_difference(
    difference: float, first_seed: int
) -> None:
    baseline = sample(draws(1, 4))
    other = sample(draws(2, 4) - draws(2, 4).mean() + baseline.mean + difference, first_seed)

    def half_width(n: int) -> float:
        if first_seed == 1:
            spread = np.std(np.array(list(other.by_seed.values())) - list(baseline.by_seed.values()), ddof=1)
            return two_sided_quantile(0.95, n - 1) * spread / math.sqrt(n)
        a, b = baseline.standard_deviation**2, other.standard_deviation**2
        return two_sided_quantile(0.95, (n - 1) * (a + b) ** 2 / (a**2 + b**2)) * math.sqrt((a + b) / n)

    needed = seeds_needed(baseline, other)
    assert 2 <= needed <= MOST_SEEDS
    assert half_width(needed) < difference
    assert needed == 2 or half_width(needed - 1) >= difference


def test_a_difference_of_nothing_needs_more_seeds_than_are_offered() -> None:
    assert seeds_needed(sample([1, 2, 3]), sample([1, 2, 3.001], first_seed=9)) == MOST_SEEDS + 1
    assert seeds_needed(sample([1, 1, 1]), sample([1, 1, 1])) == MOST_SEEDS + 1


@pytest.mark.parametrize("method", [welch, paired])
def test_groups_without_spread_have_an_interval_of_one_point(method) -> None:
    same = method(sample([2, 2, 2]), sample([2, 2, 2]))
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)
    other = method(sample([2, 2, 2]), sample([3, 3, 3]))
    assert (other.low, other.high, other.p) == (1.0, 1.0, 0.0)


def test_mean_and_deviation_of_few() -> None:
    assert math.isnan(sample([]).mean)
    assert sample([2]).mean == 2
    assert math.isnan(sample([2]).standard_deviation)
    assert sample([1, 3]).standard_deviation == pytest.approx(math.sqrt(2))


def test_holms_p_values_worked_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # 3 x 0.01, 2 x 0.03, then not less
    assert holm([0.02]) == [0.02]
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
