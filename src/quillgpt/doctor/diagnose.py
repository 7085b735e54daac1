"""From everything that is known about a run to the causes that the evidence speaks for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quillgpt.config import flatten
from quillgpt.doctor.causes import CAUSES
from quillgpt.doctor.examine import observe
from quillgpt.doctor.finding import CERTAINTIES, LIKELY, POSSIBLE, Finding
from quillgpt.doctor.observed import Observed
from quillgpt.evaluate.bands import Band
from quillgpt.evaluate.bands.judging import Judge
from quillgpt.run_record import read_run

OUTSIDE = "outside the reference band"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found, the most certain first; what was looked for and not found; what could not be looked for, and why.

    `verdict` is where the run is against its band, or why there is none.
    """

    observed: Observed
    verdict: str
    findings: dict[str, Finding]
    checked: tuple[str, ...]
    not_checked: dict[str, str]

    @property
    def is_healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def diagnose(
    run: str | Path,
    *,
    bands: Sequence[Band] | None = None,
    with_probes: bool = True,
    heartbeat: Callable[[str], None] = lambda what: None,
) -> Diagnosis:
    """Examine a run directory, finished or not. `bands`: other ones than those in the package."""
    observed = observe(read_run(run), bands=bands, with_probes=with_probes, heartbeat=heartbeat)
    findings, checked, not_checked = {}, [], {}
    for name, cause in CAUSES.items():
        reason = next((observed.missing[need] for need in cause.needs if need in observed.missing), "")
        finding = None if reason else cause.look(observed)
        if finding is not None:
            findings[name] = finding
        elif reason:
            not_checked[name] = reason
        else:
            checked.append(name)
    explained = {
        other for name, found in findings.items() if found.certainty != POSSIBLE for other in CAUSES[name].explains
    }
    findings = {name: found for name, found in findings.items() if name not in explained}
    if not findings and observed.judge and observed.judge.outside:
        findings[OUTSIDE] = _unexplained(observed, observed.judge)
    ranked = sorted(findings.items(), key=lambda entry: CERTAINTIES.index(entry[1].certainty))
    return Diagnosis(
        observed=observed,
        verdict=_verdict(observed),
        findings=dict(ranked),
        checked=tuple(checked),
        not_checked=not_checked,
    )


def _verdict(observed: Observed) -> str:
    judge = observed.judge
    if judge is None or not judge.points:
        return observed.missing["band"]
    share = f"outside at {len(judge.outside)} of {len(judge.points)} points" if judge.outside else "at every point"
    told = judge.told()
    if not judge.points[-1].excess and judge.outside:
        told += f", but was not at step {judge.outside[-1].step:,}"
    return f"{told}, {share}"


def _unexplained(observed: Observed, judge: Judge) -> Finding:
    """Outside, and no cause of the menu fits."""
    worst = max(judge.outside, key=lambda point: abs(point.excess))
    by_chance = min(1.0, len(judge.points) * (1.0 - judge.band.level))
    ours, theirs = flatten(observed.record.config), judge.band.optim
    others = [
        f"{name} = {ours[name]}; the recipe's runs had {value}" for name, value in theirs.items() if ours[name] != value
    ]
    remedy = (
        "something differs that the settings do not show: the code, the machine's arithmetic, the order of the data"
    )
    if others:
        remedy = "leave out what differs from the recipe, one by one"
    if others and all(point.excess < 0 for point in judge.outside):
        remedy = "below is better, if the held-out loss says so too; if it does not, leave out what differs"
    return Finding(
        certainty=POSSIBLE if len(judge.outside) == 1 or others else LIKELY,
        evidence=(
            worst.told(),
            f"outside at {len(judge.outside)} of {len(judge.points)} points; at most {by_chance:.1%} of healthy runs "
            "are so anywhere",
            *others,
        ),
        remedy=remedy,
    )
