"""Confidence intervals and p-values of the difference of two groups of seeds.

Welch's interval treats the groups as independent [Welch 1947]. The paired interval uses the difference seed by seed: a
seed fixes the data order and, for equal shapes, the initial weights, so groups with the same seeds share much of their
noise, and it cancels. docs/compare.md has measurements.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quillgpt.errors import import_optional

CONFIDENCE = 0.95
FEWEST_PAIRS = 3  # two pairs have one degree of freedom: 12.7 standard errors cost more than pairing saves
MOST_SEEDS = 100  # more seeds than this are not suggested


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One number per run of a group, by the run's seed."""

    by_seed: Mapping[int, float]

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        """Sample mean; NaN if empty."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else math.nan

    @property
    def standard_deviation(self) -> float:
        """Sample standard deviation (n - 1 in the denominator); NaN for fewer than two runs."""
        return statistics.stdev(self.by_seed.values()) if self.n > 1 else math.nan

    def __str__(self) -> str:
        """2.4220 ± 0.0352; the mean alone for one run; a dash for none."""
        if not self.n:
            return "-"
        return f"{self.mean:.4f}" + (f" ± {self.standard_deviation:.4f}" if self.n > 1 else "")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A difference of means, its 95 % confidence interval, and the two-sided p-value of no difference."""

    method: str
    difference: float
    low: float
    high: float
    degrees_of_freedom: float
    p: float


def welch(baseline: Sample, other: Sample) -> Interval:
    """other - baseline for independent groups of at least two [Welch 1947; degrees of freedom: Satterthwaite 1946]."""
    variances = [sample.standard_deviation**2 / sample.n for sample in (baseline, other)]  # of the two means
    total = sum(variances)
    spread = variances[0] ** 2 / (baseline.n - 1) + variances[1] ** 2 / (other.n - 1)
    degrees = total**2 / spread if spread else float(baseline.n + other.n - 2)
    return _interval("Welch", other.mean - baseline.mean, math.sqrt(total), degrees)


def paired(baseline: Sample, other: Sample) -> Interval:
    """other - baseline seed by seed, for two groups with the same seeds, at least two."""
    differences = _pair_differences(baseline, other)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return _interval("paired by seed", statistics.fmean(differences), error, len(differences) - 1.0)


def is_paired(baseline: Sample, other: Sample) -> bool:
    """Whether the paired interval decides: the same seeds in both groups, at least `FEWEST_PAIRS`."""
    return baseline.by_seed.keys() == other.by_seed.keys() and baseline.n >= FEWEST_PAIRS


def seeds_needed(baseline: Sample, other: Sample) -> int:
    """About how many seeds per group would make the interval exclude 0, if difference and spread stay as they are.

    The least n >= 2 for which t(n) times the standard error of n seeds is below the observed difference;
    `MOST_SEEDS` + 1 if there is none.
    """
    if is_paired(baseline, other):
        differences = _pair_differences(baseline, other)
        difference, variances = abs(statistics.fmean(differences)), [statistics.variance(differences)]
    else:
        difference = abs(other.mean - baseline.mean)
        variances = [sample.standard_deviation**2 for sample in (baseline, other)]
    total = sum(variances)
    if not total:
        return 2 if difference else MOST_SEEDS + 1
    n = np.arange(2, MOST_SEEDS + 1)
    half_widths = _t_quantile((n - 1) * total**2 / sum(v**2 for v in variances)) * np.sqrt(total / n)
    return next((int(count) for count, half in zip(n, half_widths, strict=True) if half < difference), MOST_SEEDS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for multiple comparisons: k times the least, k - 1 times the next, ... [Holm 1979]."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _pair_differences(baseline: Sample, other: Sample) -> list[float]:
    return [other.by_seed[seed] - value for seed, value in baseline.by_seed.items()]


def _t_quantile(degrees: float | np.ndarray) -> float | np.ndarray:
    """Student's t with `CONFIDENCE` between -t and t."""
    return import_optional("scipy.stats", extra="lab").t.ppf((1 + CONFIDENCE) / 2, degrees)


def _interval(method: str, difference: float, standard_error: float, degrees: float) -> Interval:
    half_width = float(_t_quantile(degrees)) * standard_error
    p = 0.0 if difference else 1.0
    if standard_error:
        p = 2 * float(import_optional("scipy.stats", extra="lab").t.sf(abs(difference) / standard_error, degrees))
    low, high = difference - half_width, difference + half_width
    return Interval(method=method, difference=difference, low=low, high=high, degrees_of_freedom=degrees, p=p)
