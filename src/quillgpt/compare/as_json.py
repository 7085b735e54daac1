"""A comparison in plain values, for `quill compare --json` and whoever reads it."""

import math
from typing import TYPE_CHECKING, Any

from quillgpt.compare.difference import Interval
from quillgpt.compare.groups import seed_of
from quillgpt.compare.readings import END, Measure, is_finished, planned_steps, steps_done
from quillgpt.compare.verdict import Contrast, unit

if TYPE_CHECKING:
    from quillgpt.compare.comparison import Comparison


def as_json(comparison: "Comparison") -> dict[str, Any]:
    """Groups, differences, measures, contrasts, verdicts and notes; NaN is null."""
    return {
        "groups": [
            {
                "name": group.name,
                "label": group.label,
                "runs": [
                    {
                        "path": str(run.path),
                        "seed": seed_of(run),
                        "step": steps_done(run),
                        "steps": planned_steps(run),
                        "finished": is_finished(run),
                        "used": run in group.runs,
                    }
                    for run in (*group.runs, *group.left_out)
                ],
                "experiment": group.experiment,
            }
            for group in comparison.groups
        ],
        "differing": comparison.differing,
        "besides": comparison.besides,
        "measures": [_measure(comparison, measure) for measure in comparison.measures],
        "contrasts": [_contrast(contrast) for contrast in comparison.contrasts],
        "verdicts": [
            {
                "group": verdict.group,
                "baseline": verdict.baseline,
                "verdict": verdict.word,
                "sentence": verdict.sentence,
                "seeds_needed": verdict.seeds_needed or None,
                "commands": list(verdict.commands),
            }
            for verdict in comparison.verdicts
        ],
        "notes": comparison.notes,
    }


def _measure(comparison: "Comparison", measure: Measure) -> dict[str, Any]:
    return {
        "name": measure.name,
        "unit": unit(measure),
        "over": measure.over,
        "at": None if measure.over == END else measure.at,
        "groups": {
            group.name: {
                "mean": _number(sample.mean),
                "standard_deviation": _number(sample.standard_deviation),
                "n": sample.n,
                "by_seed": dict(sample.by_seed),
            }
            for group, sample in zip(comparison.groups, measure.samples, strict=True)
        },
    }


def _contrast(contrast: Contrast) -> dict[str, Any]:
    return {
        "group": contrast.other.name,
        "baseline": contrast.baseline.name,
        "name": contrast.measure.name,
        "over": contrast.measure.over,
        "at": None if contrast.measure.over == END else contrast.measure.at,
        "intervals": [_interval(interval) for interval in contrast.intervals],
    }


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        "method": interval.method,
        "difference": interval.difference,
        "low": interval.low,
        "high": interval.high,
        "degrees_of_freedom": interval.degrees_of_freedom,
        "p": interval.p,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
