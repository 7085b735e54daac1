"""What a difference amounts to, in words: better, worse, inside the noise, or no verdict and what to run for one."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from quillgpt.compare.difference import MOST_SEEDS, Interval, Sample, seeds_needed
from quillgpt.compare.groups import Group, seed_of
from quillgpt.compare.readings import END, HELD_OUT, TRAINING, Measure, has_diverged, planned_steps
from quillgpt.run_record import RunRecord

BETTER, WORSE, INSIDE, NONE = "better", "worse", "inside the noise", "no verdict"
SIGNIFICANCE = 0.05
ENOUGH_SEEDS = 3
"""what is suggested where there is one: `quill train RECIPE --seeds 3`"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A group against the baseline: the word, the sentences that say why, and the commands that would tell more."""

    group: str
    baseline: str
    word: str
    sentence: str
    seeds_needed: int
    """about so many for each group would settle it; 0 where it is settled, or cannot be told"""
    commands: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A group against the baseline by one measure; `p` is Holm's where the verdict is one of several."""

    baseline: Group
    other: Group
    measure: Measure
    samples: tuple[Sample, Sample]
    intervals: tuple[Interval, ...]
    """the one that decides first; none where a group has fewer than two seeds"""
    p: float = 1.0
    comparisons: int = 1

    @property
    def word(self) -> str:
        """better, worse or inside the noise, whatever else speaks for or against it."""
        if not self.intervals:
            return NONE
        if self.p >= SIGNIFICANCE:
            return INSIDE
        return BETTER if self.intervals[0].difference < 0 else WORSE


def verdict_on(contrast: Contrast) -> Verdict:
    """The verdict on two groups by the measure that decides."""
    baseline, other = contrast.baseline, contrast.other
    diverged = [run for group in (baseline, other) for run in group.left_out if has_diverged(run)]
    few = [group for group, sample in zip((baseline, other), contrast.samples, strict=True) if sample.n < 2]
    word, needed, commands = contrast.word, 0, ()
    if diverged:
        word = NONE
        sentence = f"{_names(diverged)} diverged, and the mean of the others would flatter"
    elif few:
        word = NONE
        have = " and ".join(f"{group.name} has one seed" for group in few)
        sentence = f"{have}, and one run does not tell a difference from the luck of its seed. Repeat with other seeds"
        commands = repeats(contrast, ENOUGH_SEEDS)
    else:
        sentence = _found(contrast)
        if word == INSIDE and contrast.intervals[0].p >= SIGNIFICANCE:
            needed = seeds_needed(*contrast.samples)
            sentence += _more_seeds(contrast, needed)
            commands = repeats(contrast, needed) if needed <= MOST_SEEDS else ()
    return Verdict(
        group=other.name,
        baseline=baseline.name,
        word=word,
        sentence=f"{_opening(word, baseline, other)}. {sentence}.",
        seeds_needed=needed if needed <= MOST_SEEDS else 0,
        commands=tuple(commands),
    )


def verdict_on_one(group: Group, measure: Measure) -> Verdict:
    """The verdict where there is nothing but one experiment."""
    sample = measure.samples[0]
    figure = f"{place(measure)} {sample.mean:.4f}"
    if sample.n > 1:
        word = INSIDE
        sentence = (
            f"Inside the noise: the {sample.n} runs differ in nothing but the seed, so what lies between them is the "
            f"noise itself. Held out {figure} ± {sample.standard_deviation:.4f} {unit(measure)}."
        )
    else:
        word, sentence = NONE, f"No verdict: only one run can be used. Held out {figure} {unit(measure)}."
    return Verdict(group=group.name, baseline=group.name, word=word, sentence=sentence, seeds_needed=0, commands=())


def no_verdict(group: str, baseline: str, reason: str) -> Verdict:
    """That there is none, and why."""
    sentence = f"{group} against {baseline}: {NONE}. {reason}."
    return Verdict(group=group, baseline=baseline, word=NONE, sentence=sentence, seeds_needed=0, commands=())


def unit(measure: Measure) -> str:
    """What the measure's numbers are."""
    return "nats per token" if measure.name in (TRAINING, HELD_OUT) else "bits per byte"


def place(measure: Measure) -> str:
    """Where the measure was read."""
    return {
        "step": f"at step {measure.at:,.0f}",
        "tokens": f"at {measure.at:,.0f} tokens",
        "elapsed_seconds": f"after {seconds(measure.at)}",
        END: "at the end",
    }[measure.over]


def seconds(duration: float) -> str:
    """A duration in seconds, shorter where it is long."""
    return f"{duration:,.1f} s" if duration < 100 else f"{duration:,.0f} s"


def signed(number: float) -> str:
    """A difference of losses with its sign: four places, more where that would be nothing."""
    return f"{number:+.4f}" if number == 0 or abs(number) >= 5e-4 else f"{number:+.2g}"


def span(interval: Interval) -> str:
    """The ends of an interval."""
    return f"{signed(interval.low)} to {signed(interval.high)}"


def repeats(contrast: Contrast, target: int) -> list[str]:
    """The commands that bring both groups to the same seeds, so many of them or more."""
    groups = (contrast.baseline, contrast.other)
    wanted = set(groups[0].seeds) | set(groups[1].seeds)
    while len(wanted) < target:
        wanted.add(max(wanted) + 1)
    have = [{seed_of(run) for run in (*group.runs, *group.left_out)} for group in groups]
    return [
        command for group, seeds in zip(groups, have, strict=True) for command in _repeats_of(group, wanted - seeds)
    ]


def _repeats_of(group: Group, seeds: Collection[int]) -> list[str]:
    """`quill train` for the seeds that a group lacks, one command for each row of consecutive ones."""
    run = group.runs[0]
    length = f" --steps {planned_steps(run)}" if run.config.train.minutes else ""
    starts = [seed for seed in sorted(seeds) if seed - 1 not in seeds]
    rows = [(start, next(n for n in range(1, len(seeds) + 1) if start + n not in seeds)) for start in starts]
    return [f"quill train {_shown(run.path)}{length} --seed {start} --seeds {count}" for start, count in rows]


def _shown(path: Path) -> str:
    return shlex.quote(str(path))


def _names(runs: Sequence[RunRecord]) -> str:
    return " and ".join(str(run.path) for run in runs)


def _opening(word: str, baseline: Group, other: Group) -> str:
    if word in (BETTER, WORSE):
        return f"{other.name} is {word} than {baseline.name}"
    return f"{other.name} against {baseline.name}: {word}"


def _found(contrast: Contrast) -> str:
    """What was measured, its interval, and what the several comparisons make of it."""
    measure, interval = contrast.measure, contrast.intervals[0]
    what = "Held-out loss" if measure.name == HELD_OUT else "Held-out text"
    if interval.difference == interval.low == interval.high == 0:
        return f"{what} {place(measure)} is the same to the last digit, seed by seed: what differs has no effect on it"
    method = f"{interval.method}, {interval.degrees_of_freedom:.3g} degrees of freedom"
    method += "".join(f"; {other.method}'s is {span(other)}" for other in contrast.intervals[1:])
    difference = f"{contrast.other.name} - {contrast.baseline.name} = {signed(interval.difference)} {unit(measure)}"
    text = f"{what} {place(measure)}: {difference}, 95 % interval {span(interval)} ({method})"
    if contrast.comparisons > 1 and contrast.word == INSIDE and interval.p < SIGNIFICANCE:
        text += f". That excludes 0, but it is one of {contrast.comparisons} comparisons (Holm's p {contrast.p:.2g})"
    return text


def _more_seeds(contrast: Contrast, needed: int) -> str:
    if needed > MOST_SEEDS:
        return f". More than {MOST_SEEDS} seeds each would be needed to tell so small a difference from none"
    more = max(1, needed - min(sample.n for sample in contrast.samples))
    return f". About {needed} seeds each ({more} more) would settle it, if difference and spread stay what they are"
