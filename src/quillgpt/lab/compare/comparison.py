"""Compare runs: what differs, their losses at equal places, and a verdict on each group against the first."""

import dataclasses
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quillgpt.config import Scalar, group_of
from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.lab.compare.groups import RunGroup, differing, differing_machines, grouped, letters, seed_of
from quillgpt.lab.compare.measures import (
    BITS_PER_BYTE,
    END,
    TRAINING,
    VALIDATION,
    Measure,
    at_the_end,
    finite_series,
    has_diverged,
    is_finished,
    measures,
    planned_steps,
    steps_done,
)
from quillgpt.lab.compare.statistics import MOST_SEEDS, Interval, Sample, holm, is_paired, paired, seeds_needed, welch
from quillgpt.lab.run_record import read_run

NO_COMMON_PLACE = "No step, token count or time is common to all evaluations"
DECIDING = [END, "tokens", "step", "elapsed_seconds"]  # the first of these that two groups have decides
SIGNIFICANCE = 0.05
ENOUGH_SEEDS = 3  # suggested for a group of one: `quill train RECIPE --seeds 3`


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A group against the baseline by one measure.

    `intervals`: the one that decides comes first; empty if a group has fewer than two seeds.
    """

    baseline: RunGroup
    other: RunGroup
    measure: Measure
    samples: tuple[Sample, Sample]
    intervals: tuple[Interval, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A group against the baseline: better, worse, inside the noise or no verdict, and why.

    `seeds_needed`: about how many seeds per group would settle it; None if it is settled or more than `MOST_SEEDS`.
    """

    group: str
    baseline: str
    verdict: str
    sentence: str
    seeds_needed: int | None = None
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Groups of runs, the baseline first, and the results. Losses are in nats per token, or all in bits per byte.

    `differing`: the settings in which the experiments differ, a value per group; `machines`: the same of the machines.
    `contrasts`: each group against the baseline by each validation measure. `notes` qualify the numbers.
    """

    groups: list[RunGroup]
    differing: dict[str, list[Scalar]]
    machines: dict[str, list[str]]
    measures: list[Measure]
    contrasts: list[Contrast]
    verdicts: list[Verdict]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain values; NaN is None."""
        names = [group.name for group in self.groups]
        return {
            "groups": [_group_json(group) for group in self.groups],
            "differing": self.differing,
            "machines": self.machines,
            "measures": [
                {"name": one.name, "unit": one.unit, "over": one.over, "at": _finite(one.at)}
                | {"groups": dict(zip(names, map(_sample_json, one.samples), strict=True))}
                for one in self.measures
            ],
            "contrasts": [
                {"group": one.other.name, "baseline": one.baseline.name}
                | {"name": one.measure.name, "over": one.measure.over, "at": _finite(one.measure.at)}
                | {"intervals": [dataclasses.asdict(interval) for interval in one.intervals]}
                for one in self.contrasts
            ],
            "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            "notes": self.notes,
        }


def _group_json(group: RunGroup) -> dict[str, Any]:
    runs = [
        {"path": str(run.path), "seed": seed_of(run), "step": steps_done(run), "steps": planned_steps(run)}
        | {"finished": is_finished(run), "used": run in group.runs}
        for run in (*group.runs, *group.left_out)
    ]
    return {"name": group.name, "label": group.label, "runs": runs, "experiment": group.experiment}


def _sample_json(sample: Sample) -> dict[str, Any]:
    moments = {"mean": _finite(sample.mean), "standard_deviation": _finite(sample.standard_deviation)}
    return moments | {"n": sample.n, "by_seed": dict(sample.by_seed)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def compare_runs(runs: Sequence[str | Path]) -> Comparison:
    """Compare run directories, grouped by everything but the seed; the group of the first run is the baseline.

    Example:
        found = compare_runs(["runs/debug-seed-1337", "runs/debug-seed-1338", "runs/other-seed-1337", ...])
        print(found.verdicts[0].sentence)

    """
    paths: dict[Path, Path] = {}
    for run in map(Path, runs):
        paths.setdefault(run.resolve(), run)
    if len(paths) < 2:
        raise ConfigError(f"{len(paths)} run named; a comparison needs two or more: quill compare RUN_A RUN_B")
    records = [read_run(path) for path in paths.values()]
    groups, notes = grouped(records)
    groups, unusable, more_notes = _usable(groups)
    if not groups:
        done = ", ".join(f"{run.path} (step {steps_done(run):,})" for run in records)
        raise CheckpointError(f"none of these runs has a validation loss yet: {done}; let one finish, or --eval-every")
    differences = differing(groups)
    is_one_text = not any(name in ("data", "tokenizer") or group_of().get(name) == "data" for name in differences)
    validation = VALIDATION if is_one_text else BITS_PER_BYTE
    found = measures(groups, [TRAINING, VALIDATION] if is_one_text else [BITS_PER_BYTE])
    ends = [at_the_end(groups, name) for name in dict.fromkeys((validation, BITS_PER_BYTE))]
    found += [measure for measure in ends if any(sample.n for sample in measure.samples)]
    order = sorted((one for one in found if one.name == validation), key=lambda one: DECIDING.index(one.over))
    contrasts = [contrast for other in groups[1:] for contrast in _contrasts(groups, other, order)]
    deciding = {contrast.other.name: contrast for contrast in reversed(contrasts)}
    verdicts = _verdicts(groups, deciding)
    if len(groups) == 1 and not unusable:
        verdicts = [verdict_on_one(groups[0], order[0]) if order else no_verdict("A", "A", NO_COMMON_PLACE)]
    for group in unusable:
        diverged = sum(has_diverged(run) for run in group.runs)
        reason = f"{diverged} of its {len(group.runs)} runs diverged, and none" if diverged else "None of its runs"
        verdicts.append(no_verdict(group.label, "A", f"{reason} has a validation loss to compare"))
    return Comparison(
        groups=groups,
        differing=differences,
        machines=differing_machines(groups),
        measures=found,
        contrasts=contrasts,
        verdicts=verdicts,
        notes=[*notes, *more_notes, *_remarks(groups, found, deciding, is_one_text=is_one_text)],
    )


def _usable(groups: Sequence[RunGroup]) -> tuple[list[RunGroup], list[RunGroup], list[str]]:
    """The groups without unfinished runs if others of the group are finished; groups without a usable run; notes."""
    kept: list[RunGroup] = []
    unusable: list[RunGroup] = []
    notes = []
    for group in groups:
        evaluated = [run for run in group.runs if len(finite_series(run, VALIDATION, "step")[0])]
        finished = [run for run in evaluated if is_finished(run)]
        runs = finished or [run for run in evaluated if not has_diverged(run)]
        left_out = [run for run in group.runs if run not in runs]
        for run in left_out:
            step = f"step {steps_done(run):,} of {planned_steps(run):,}"
            reason = f"it is not finished ({step}); the others of its group are"
            if has_diverged(run):
                reason = f"it diverged ({step}, its loss is not a finite number)"
            elif run not in evaluated:
                reason = f"it has no validation loss yet ({step})"
            notes.append(f"{run.path} is left out: {reason}")
        if not runs:
            unusable.append(group)
            continue
        kept.append(RunGroup(name=letters(len(kept)), runs=tuple(runs), left_out=tuple(left_out)))
        if not finished:
            steps = ", ".join(f"{steps_done(run):,} of {planned_steps(run):,}" for run in runs)
            notes.append(f"{kept[-1].name} is not finished (step {steps}): compared as far as it is")
    return kept, unusable, notes


def _contrasts(groups: Sequence[RunGroup], other: RunGroup, order: Sequence[Measure]) -> list[Contrast]:
    """A group against the first by each measure that both have, without measures that repeat the same numbers."""
    found: list[Contrast] = []
    for measure in order:
        samples = measure.samples[0], measure.samples[groups.index(other)]
        if not (samples[0].n and samples[1].n) or any(samples == contrast.samples for contrast in found):
            continue
        methods = [paired, welch] if is_paired(*samples) else [welch]
        intervals = tuple(method(*samples) for method in methods) if min(one.n for one in samples) > 1 else ()
        found.append(Contrast(baseline=groups[0], other=other, measure=measure, samples=samples, intervals=intervals))
    return found


def _verdicts(groups: Sequence[RunGroup], first: Mapping[str, Contrast]) -> list[Verdict]:
    """The verdict on each group but A, by its first contrast; p-values adjusted for their number."""
    tested = [name for name in first if first[name].intervals]
    p_values = dict(zip(tested, holm([first[name].intervals[0].p for name in tested]), strict=True))
    return [
        verdict_on(first[group.name], p=p_values.get(group.name, 1.0), comparisons=len(tested))
        if group.name in first
        else no_verdict(group.name, groups[0].name, NO_COMMON_PLACE)
        for group in groups[1:]
    ]


def _remarks(
    groups: Sequence[RunGroup], found: Sequence[Measure], deciding: Mapping[str, Contrast], *, is_one_text: bool
) -> list[str]:
    """Notes that qualify the numbers."""
    differences, remarks = differing(groups), []
    if not is_one_text:
        remarks.append(
            "the groups differ in data or tokenizer, so only bits per byte are compared: nats per token depend on the "
            "tokenizer, and equal tokens are not equal text"
        )
    if "eval_tokens" in differences and is_one_text:
        counts = ", ".join(f"{group.name} {group.experiment['eval_tokens']:,}" for group in groups)
        remarks.append(f"validation losses are over different numbers of tokens ({counts}), so over different text")
    if differences.keys() == {"steps"} and any(run.config.train.minutes for group in groups for run in group.runs):
        remarks.append("only the steps differ, chosen by --minutes; --seeds N makes repeats of equal length")
    elif "steps" in differences:
        remarks.append("the groups differ in length: at equal places one run is in mid-schedule and another at its end")
    if not any(measure.over == "elapsed_seconds" and measure.name != TRAINING for measure in found):
        remarks.append("no comparison at equal seconds: no time is common to all evaluations; --eval-every adds some")
    if differing_machines(groups):
        remarks.append("the groups ran on different machines or threads, so equal seconds are not equal work")
    tested = sum(bool(contrast.intervals) for contrast in deciding.values())
    if tested > 1:
        remarks.append(
            f"{tested} comparisons with A: one interval in 20 excludes 0 by chance alone, so the verdicts use "
            "Holm's p-values, which are adjusted for their number"
        )
    return remarks


def verdict_on(contrast: Contrast, *, p: float, comparisons: int) -> Verdict:
    """The verdict on two groups; `p` is adjusted for the number of comparisons."""
    groups = baseline, other = contrast.baseline, contrast.other
    diverged = [str(run.path) for group in groups for run in group.left_out if has_diverged(run)]
    few = [group.name for group, sample in zip(groups, contrast.samples, strict=True) if sample.n < 2]
    if diverged:
        reason = f"{' and '.join(diverged)} diverged, and the mean of the others would be too good"
        return no_verdict(other.name, baseline.name, reason)
    if few:
        reason = " and ".join(f"{name} has one seed" for name in few)
        reason += ", and a single run does not separate a difference from noise. Repeat with other seeds"
        return no_verdict(other.name, baseline.name, reason, tuple(repeats(contrast, ENOUGH_SEEDS)))
    interval, needed, commands = contrast.intervals[0], None, []
    sentence = evidence(contrast)
    if p < SIGNIFICANCE:
        word = "better" if interval.difference < 0 else "worse"
        opening = f"{other.name} is {word} than {baseline.name}"
    else:
        word = "inside the noise"
        opening = f"{other.name} against {baseline.name}: {word}"
        if interval.p < SIGNIFICANCE:
            sentence += f". That excludes 0, but it is one of {comparisons} comparisons (Holm's p {p:.2g})"
        elif (seeds := seeds_needed(*contrast.samples)) <= MOST_SEEDS:
            needed, commands = seeds, repeats(contrast, seeds)
            more = max(1, seeds - min(sample.n for sample in contrast.samples))
            sentence += (
                f". About {seeds} seeds each ({more} more) would settle it, if difference and spread stay the same"
            )
        else:
            sentence += (
                f". More than {MOST_SEEDS} seeds each would be needed to distinguish so small a difference from 0"
            )
    return Verdict(
        group=other.name,
        baseline=baseline.name,
        verdict=word,
        sentence=f"{opening}. {sentence}.",
        seeds_needed=needed,
        commands=tuple(commands),
    )


def verdict_on_one(group: RunGroup, measure: Measure) -> Verdict:
    """The verdict if all runs are of one experiment."""
    sample = measure.samples[0]
    figure = f"Validation loss {measure.place} {sample.mean:.4f}"
    if sample.n < 2:
        word, sentence = "no verdict", f"No verdict: only one run can be used. {figure} {measure.unit}."
    else:
        word = "inside the noise"
        sentence = (
            f"Inside the noise: the {sample.n} runs differ in nothing but the seed, so their spread is the noise "
            f"itself. {figure} ± {sample.standard_deviation:.4f} {measure.unit}."
        )
    return Verdict(group=group.name, baseline=group.name, verdict=word, sentence=sentence)


def no_verdict(group: str, baseline: str, reason: str, commands: tuple[str, ...] = ()) -> Verdict:
    """No verdict, and why."""
    sentence = f"{group} against {baseline}: no verdict. {reason}."
    return Verdict(group=group, baseline=baseline, verdict="no verdict", sentence=sentence, commands=commands)


def repeats(contrast: Contrast, target: int) -> list[str]:
    """The commands that give both groups the same seeds, `target` or more."""
    groups = (contrast.baseline, contrast.other)
    seeds = set(groups[0].seeds) | set(groups[1].seeds)
    while len(seeds) < target:
        seeds.add(max(seeds) + 1)
    have = [{seed_of(run) for run in (*group.runs, *group.left_out)} for group in groups]
    return [command for group, own in zip(groups, have, strict=True) for command in _repeats_of(group, seeds - own)]


def _repeats_of(group: RunGroup, seeds: Collection[int]) -> list[str]:
    """`quill train` for the missing seeds, one command per range of consecutive ones."""
    run = group.runs[0]
    length = f" --steps {planned_steps(run)}" if run.config.train.minutes else ""
    starts = [seed for seed in sorted(seeds) if seed - 1 not in seeds]
    ranges = [(start, next(n for n in range(1, len(seeds) + 1) if start + n not in seeds)) for start in starts]
    return [f"quill train {shlex.quote(str(run.path))}{length} --seed {start} --seeds {n}" for start, n in ranges]


def evidence(contrast: Contrast) -> str:
    """The difference with its intervals."""
    measure, interval = contrast.measure, contrast.intervals[0]
    what = f"Validation {'loss' if measure.name == VALIDATION else 'text'} {measure.place}"
    if interval.difference == interval.low == interval.high == 0:
        return f"{what} is the same to the last digit, seed by seed: what differs has no effect on it"
    method = f"{interval.method}, {interval.degrees_of_freedom:.3g} degrees of freedom"
    method += "".join(f"; {other.method}'s is {span(other)}" for other in contrast.intervals[1:])
    difference = f"{contrast.other.name} - {contrast.baseline.name} = {signed(interval.difference)} {measure.unit}"
    return f"{what}: {difference}, 95 % interval {span(interval)} ({method})"


def signed(number: float) -> str:
    """A difference of losses with its sign: four decimals, two significant digits if it is tiny."""
    return f"{number:+.4f}" if number == 0 or abs(number) >= 5e-4 else f"{number:+.2g}"


def span(interval: Interval) -> str:
    """The ends of an interval."""
    return f"{signed(interval.low)} to {signed(interval.high)}"
