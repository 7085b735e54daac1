"""The difference of two groups of seeds: its interval, its p-value, and the seeds that would settle it.

Two intervals are computed. Welch's takes the groups as independent [Welch 1947]. The paired one looks at the
difference seed by seed: a seed fixes the order of the data and, for equal shapes, the initial weights, so two groups
with the same seeds share much of their luck, and it cancels. docs/compare.md has the evidence.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quillgpt.student_t import two_sided_p, two_sided_quantile

CONFIDENCE = 0.95
FEWEST_PAIRS = 3
"""With two pairs there is one degree of freedom, and 12.7 standard errors are wider than what pairing saves."""
MOST_SEEDS = 100
"""A difference that needs more than these is not told apart by running more seeds."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One number of each run of a group, by the run's seed."""

    by_seed: Mapping[int, float]

    @property
    def n(self) -> int:
        """The runs that have the number."""
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        """Their mean; NaN of none."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else math.nan

    @property
    def standard_deviation(self) -> float:
        """Their standard deviation, with n - 1 below; NaN of fewer than two."""
        return statistics.stdev(self.by_seed.values()) if self.n > 1 else math.nan

    @property
    def variance_of_mean(self) -> float:
        """The square of the standard error of the mean."""
        return self.standard_deviation**2 / self.n


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A difference of means with its 95 % interval, and the p-value of there being none."""

    method: str
    difference: float
    low: float
    high: float
    degrees_of_freedom: float
    p: float


def welch(baseline: Sample, other: Sample) -> Interval:
    """other - baseline, as independent groups of at least two [Welch 1947; degrees of freedom: Satterthwaite 1946]."""
    variances = baseline.variance_of_mean, other.variance_of_mean
    total = sum(variances)
    spread = sum(v**2 / (group.n - 1) for v, group in zip(variances, (baseline, other), strict=True))
    degrees = total**2 / spread if spread else float(baseline.n + other.n - 2)
    return _interval("Welch", other.mean - baseline.mean, math.sqrt(total), degrees)


def paired(baseline: Sample, other: Sample) -> Interval:
    """other - baseline, seed by seed, for two groups with the same seeds, at least two."""
    differences = pair_differences(baseline, other)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return _interval("paired by seed", statistics.fmean(differences), error, len(differences) - 1.0)


def is_paired(baseline: Sample, other: Sample) -> bool:
    """Whether the paired interval is the one that decides: the same seeds in both groups, and enough of them."""
    return baseline.by_seed.keys() == other.by_seed.keys() and baseline.n >= FEWEST_PAIRS


def pair_differences(baseline: Sample, other: Sample) -> list[float]:
    """other - baseline of each seed."""
    return [other.by_seed[seed] - value for seed, value in baseline.by_seed.items()]


def seeds_needed(baseline: Sample, other: Sample) -> int:
    """About the seeds for each group at which the interval would exclude 0, if difference and spread stay as they are.

    The least n >= 2 whose half width, t(n) times the standard error with n seeds, is below the observed difference;
    `MOST_SEEDS` + 1 where even that many are too few.
    """
    if is_paired(baseline, other):
        differences = pair_differences(baseline, other)
        difference, variances = abs(statistics.fmean(differences)), (statistics.variance(differences),)
    else:
        difference = abs(other.mean - baseline.mean)
        variances = baseline.standard_deviation**2, other.standard_deviation**2
    total, squares = sum(variances), sum(v**2 for v in variances)
    if not total:
        return 2 if difference else MOST_SEEDS + 1
    for n in range(2, MOST_SEEDS + 1):
        half_width = two_sided_quantile(CONFIDENCE, (n - 1) * total**2 / squares) * math.sqrt(total / n)
        if half_width < difference:
            return n
    return MOST_SEEDS + 1


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for there being several: k times the least, k - 1 times the next, ... [Holm 1979]."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _interval(method: str, difference: float, standard_error: float, degrees: float) -> Interval:
    half_width = two_sided_quantile(CONFIDENCE, degrees) * standard_error
    without_spread = 0.0 if difference else 1.0
    p = two_sided_p(difference / standard_error, degrees) if standard_error else without_spread
    return Interval(
        method=method,
        difference=difference,
        low=difference - half_width,
        high=difference + half_width,
        degrees_of_freedom=degrees,
        p=p,
    )
