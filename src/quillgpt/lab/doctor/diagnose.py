"""Look for every cause of the menu in what is known about a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quillgpt.config import flatten
from quillgpt.lab.bands.band import Band
from quillgpt.lab.bands.judge import Judge
from quillgpt.lab.doctor.causes import CAUSES
from quillgpt.lab.doctor.observe import CERTAINTIES, LIKELY, POSSIBLE, Finding, Observed, observe
from quillgpt.lab.run_record import read_run

OUTSIDE = "outside the reference band"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The causes found, the most certain first; those not found; those that could not be checked, and why.

    `verdict` compares the run with its band, or says why there is none.
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
    """Diagnose a run directory, finished or not.

    bands: instead of those in the package. with_probes: score text with the newest checkpoint. heartbeat: called with
    what is done next.
    """
    observed = observe(read_run(run), bands=bands, with_probes=with_probes, heartbeat=heartbeat)
    findings, checked, not_checked = {}, [], {}
    for name, cause in CAUSES.items():
        reason = observed.missing.get(cause.needs)
        finding = None if reason else cause.find(observed)
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
    judge = observed.judge
    if not findings and judge and judge.outside:
        findings[OUTSIDE] = _unexplained(observed, judge)
    verdict = observed.missing.get("band", "")
    if judge and judge.points:
        verdict = judge.text()
        if judge.outside and not judge.points[-1].excess:
            verdict += f", but was not at step {judge.outside[-1].step:,}"
        count = f"outside at {len(judge.outside)} of {len(judge.points)} points"
        verdict += f", {count if judge.outside else 'at every point'}"
    return Diagnosis(
        observed=observed,
        verdict=verdict,
        findings=dict(sorted(findings.items(), key=lambda entry: CERTAINTIES.index(entry[1].certainty))),
        checked=tuple(checked),
        not_checked=not_checked,
    )


def _unexplained(observed: Observed, judge: Judge) -> Finding:
    """Outside the band, and no cause of the menu was found."""
    worst = max(judge.outside, key=lambda point: abs(point.excess))
    by_chance = min(1.0, len(judge.points) * (1.0 - judge.band.level))
    own = flatten(observed.record.config)
    others = [
        f"{name} = {own[name]}; the recipe's runs had {value}"
        for name, value in judge.band.optim.items()
        if own[name] != value
    ]
    remedy = "something differs that the settings do not show: the code, the machine's arithmetic, the data order"
    if others:
        remedy = "undo the differences from the recipe one by one"
        if all(point.excess < 0 for point in judge.outside):
            remedy = f"lower is better if the validation loss is lower too; if it is not, {remedy}"
    share = f"outside at {len(judge.outside)} of {len(judge.points)} points"
    evidence = (worst.text(), f"{share}; at most {by_chance:.1%} of healthy runs are outside at any", *others)
    return Finding(POSSIBLE if len(judge.outside) == 1 or others else LIKELY, remedy, evidence)
