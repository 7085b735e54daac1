"""Runs side by side: what differs, their losses at equal places, and a verdict on each group against the first."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quillgpt.compare.difference import Interval, holm, is_paired, paired, welch
from quillgpt.compare.groups import Group, differing, differing_besides, grouped, letters
from quillgpt.compare.readings import (
    BITS_PER_BYTE,
    END,
    HELD_OUT,
    TRAINING,
    Measure,
    at_the_end,
    finite_series,
    has_diverged,
    is_finished,
    measures,
    planned_steps,
    steps_done,
)
from quillgpt.compare.verdict import Contrast, Verdict, no_verdict, verdict_on, verdict_on_one
from quillgpt.config import Scalar, group_of
from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.run_record import RunRecord, read_run


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Groups of runs, A first, and what was found. Losses are in nats per token, or all in bits per byte."""

    groups: list[Group]
    differing: dict[str, list[Scalar]]
    """what the experiments differ in, with a value for each group"""
    besides: dict[str, list[str]]
    """what their machines differ in"""
    measures: list[Measure]
    contrasts: list[Contrast]
    """each group against A by each held-out measure that says something of its own"""
    verdicts: list[Verdict]
    notes: list[str]
    """what has to be known to read the rest"""

    def as_json(self) -> dict[str, Any]:
        """All of it in plain values; what is not a number is null."""
        from quillgpt.compare.as_json import as_json

        return as_json(self)


def compare_runs(runs: Sequence[str | Path]) -> Comparison:
    """Compare run directories, grouped by everything but the seed; the group of the first run is the baseline.

    For example:
        found = compare_runs(["runs/debug-seed-1337", "runs/debug-seed-1338", "runs/other-seed-1337", ...])
        print(found.verdicts[0].sentence)
    """
    places = {Path(run).resolve(): Path(run) for run in reversed(runs)}
    records = [read_run(path) for path in reversed(places.values())]
    if len(records) < 2:
        raise ConfigError(f"{len(records)} run named; a comparison needs two or more: quill compare RUN_A RUN_B")
    groups, notes = grouped(records)
    groups, unusable, more_notes = _usable(groups)
    if not groups:
        done = ", ".join(f"{run.path} (step {steps_done(run):,})" for run in records)
        raise CheckpointError(f"none of these runs has a held-out loss yet: {done}; let one finish, or --eval-every")
    is_one_text = _have_one_text(groups)
    held_out = HELD_OUT if is_one_text else BITS_PER_BYTE
    found = measures(groups, [*([TRAINING] if is_one_text else []), held_out])
    ends = [at_the_end(groups, name) for name in dict.fromkeys((held_out, BITS_PER_BYTE))]
    found += [measure for measure in ends if any(sample.n for sample in measure.samples)]
    order = _deciding_order(found, held_out)
    deciding = _adjusted(_contrasts(groups, order, is_first_only=True))
    return Comparison(
        groups=groups,
        differing=differing(groups),
        besides=differing_besides(groups),
        measures=found,
        contrasts=_contrasts(groups, order, is_first_only=False),
        verdicts=[*_verdicts(groups, order, deciding, is_alone=not unusable), *_no_verdicts(unusable, groups[0])],
        notes=[*notes, *more_notes, *_remarks(groups, found, is_one_text=is_one_text), *_count(deciding)],
    )


def _usable(groups: Sequence[Group]) -> tuple[list[Group], list[Group], list[str]]:
    """The groups without runs that did not come to their end, where others did; groups of which no run is of use."""
    kept: list[Group] = []
    unusable: list[Group] = []
    notes = []
    for group in groups:
        evaluated = [run for run in group.runs if len(finite_series(run, HELD_OUT, "step")[0])]
        finished = [run for run in evaluated if is_finished(run)]
        runs = finished or [run for run in evaluated if not has_diverged(run)]
        left_out = [run for run in group.runs if run not in runs]
        notes += [_why_left_out(run) for run in left_out]
        if not runs:
            unusable.append(group)
            continue
        kept.append(Group(name=letters(len(kept)), runs=tuple(runs), left_out=tuple(left_out)))
        if not finished:
            steps = ", ".join(f"{steps_done(run):,} of {planned_steps(run):,}" for run in runs)
            notes.append(f"{kept[-1].name} is not finished (step {steps}): compared as far as it is")
    return kept, unusable, notes


def _verdicts(
    groups: Sequence[Group], order: Sequence[Measure], deciding: Sequence[Contrast], *, is_alone: bool
) -> list[Verdict]:
    """The verdict on each group against the first, or on one experiment alone."""
    apart = "there is no step, token count or second that their evaluations have in common"
    if len(groups) == 1 and is_alone:
        return [verdict_on_one(groups[0], order[0]) if order else no_verdict("A", "A", f"Of the runs {apart}")]
    by_group = {contrast.other.name: verdict_on(contrast) for contrast in deciding}
    return [by_group.get(other.name) or no_verdict(other.name, "A", apart.capitalize()) for other in groups[1:]]


def _no_verdicts(unusable: Sequence[Group], baseline: Group) -> list[Verdict]:
    """The verdict on groups of which no run is of use: that there is none, and why."""
    verdicts = []
    for group in unusable:
        diverged = sum(has_diverged(run) for run in group.runs)
        reason = f"{diverged} of its {len(group.runs)} runs diverged, and none" if diverged else "None of its runs"
        verdicts.append(no_verdict(group.label, baseline.name, f"{reason} has a held-out loss to compare"))
    return verdicts


def _why_left_out(run: RunRecord) -> str:
    step = f"step {steps_done(run):,} of {planned_steps(run):,}"
    if has_diverged(run):
        return f"{run.path} is left out: it diverged ({step}, its loss is not a finite number)"
    if not len(finite_series(run, HELD_OUT, "step")[0]):
        return f"{run.path} is left out: it has no held-out loss yet ({step})"
    return f"{run.path} is left out: it is not finished ({step}); the others of its group are"


def _have_one_text(groups: Sequence[Group]) -> bool:
    """Whether all groups have the same data and tokenizer, so that their nats per token are the same thing."""
    names = {name for name in differing(groups) if name in ("data", "tokenizer") or group_of().get(name) == "data"}
    return not names


def _deciding_order(found: Sequence[Measure], name: str) -> list[Measure]:
    """The held-out measures by how much they decide: at the end, at equal tokens, steps, seconds."""
    order = [END, "tokens", "step", "elapsed_seconds"]
    held_out = [measure for measure in found if measure.name == name]
    return sorted(held_out, key=lambda measure: order.index(measure.over))


def _contrasts(groups: Sequence[Group], order: Sequence[Measure], *, is_first_only: bool) -> list[Contrast]:
    """Each group against the first by each measure that both have, without those that have the same numbers again."""
    found = []
    for place, other in enumerate(groups[1:], start=1):
        seen = []
        for measure in order:
            samples = measure.samples[0], measure.samples[place]
            if not (samples[0].n and samples[1].n) or samples in seen or (is_first_only and seen):
                continue
            seen.append(samples)
            intervals: tuple[Interval, ...] = ()
            if min(samples[0].n, samples[1].n) > 1:
                intervals = (welch(*samples),)
                if is_paired(*samples):
                    intervals = (paired(*samples), *intervals)
            p = intervals[0].p if intervals else 1.0
            found.append(
                Contrast(baseline=groups[0], other=other, measure=measure, samples=samples, intervals=intervals, p=p)
            )
    return found


def _adjusted(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The same with Holm's p-values, for those that have one."""
    tested = [contrast for contrast in contrasts if contrast.intervals]
    p_values = iter(holm([contrast.p for contrast in tested]))
    return [
        dataclasses.replace(contrast, p=next(p_values), comparisons=len(tested)) if contrast.intervals else contrast
        for contrast in contrasts
    ]


def _count(contrasts: Sequence[Contrast]) -> list[str]:
    """How many comparisons were made, where they are several."""
    count = sum(bool(contrast.intervals) for contrast in contrasts)
    if count < 2:
        return []
    return [
        f"{count} comparisons with A: one interval in 20 excludes 0 by chance alone, so the verdicts go by Holm's "
        "p-values, which allow for their number"
    ]


def _remarks(groups: Sequence[Group], found: Sequence[Measure], *, is_one_text: bool) -> list[str]:
    """What the reader has to know of the groups beside their numbers."""
    differences, remarks = differing(groups), []
    if not is_one_text:
        remarks.append(
            "the groups differ in data or tokenizer, so only bits per byte are compared: nats per token of two "
            "tokenizers are not the same thing, and equal tokens are not equal text"
        )
    if "eval_tokens" in differences and is_one_text:
        counts = ", ".join(f"{group.name} {group.experiment['eval_tokens']:,}" for group in groups)
        remarks.append(f"held-out losses are over different numbers of tokens ({counts}), so over different text")
    if differences.keys() == {"steps"} and any(run.config.train.minutes for group in groups for run in group.runs):
        remarks.append("only the steps differ, chosen by --minutes; --seeds N makes repeats of equal length")
    elif "steps" in differences:
        remarks.append("the groups differ in length: at equal places a run in mid-schedule meets one at its end")
    if not any(measure.over == "elapsed_seconds" and measure.name != TRAINING for measure in found):
        remarks.append(
            "no equal seconds: no time was reached by all runs between two evaluations; --eval-every makes some"
        )
    if differing_besides(groups):
        remarks.append("the groups did not run on equal machines or threads, so equal seconds are not equal work")
    return remarks
