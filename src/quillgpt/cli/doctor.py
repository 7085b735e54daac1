"""`quill doctor RUN`: compare a run with its recipe's reference band and find likely causes of a difference."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from quillgpt.cli.arguments import parse
from quillgpt.cli.console import output_console
from quillgpt.errors import CheckError

if TYPE_CHECKING:
    from rich.console import Console

    from quillgpt.lab.doctor.diagnose import Diagnosis

PIPE_COLUMNS = 100
PICTURE_LINES = 9
COLOURS = {"certain": "bold red", "very likely": "red", "likely": "yellow", "possible": "dim"}


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Compare a run with its recipe's reference band, and look for causes of a bad run.

    The band is the interval of a healthy run's training loss; each cause found is reported with its evidence and a
    remedy. If the run has a checkpoint and its data exists, validation text and a few batches are scored with it, which
    takes some seconds. Exit code 0 if nothing is found, 76 if something is. docs/doctor.md explains each cause.
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[RUN]")] = ""
    """run to diagnose, finished or not; default: the newest run under runs/"""
    band: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """your own reference band, made by benchmarks/reference_bands.py"""
    probes: bool = True
    """score validation text and a few batches with the newest checkpoint; without, only the records are read"""
    json: bool = False
    """print JSON instead of text"""


def main(arguments: list[str]) -> int:
    """Diagnose a run and print the findings; any finding is a `CheckError`."""
    options, _ = parse(DoctorOptions, arguments, prog="quill doctor")

    from rich.console import Console

    from quillgpt.lab.bands.band import read_band
    from quillgpt.lab.doctor import diagnose
    from quillgpt.run_dir import newest_run

    run = options.run or str(newest_run())
    bands = [read_band(Path(options.band))] if options.band else None
    with Console(stderr=True).status("reading the records") as status:
        diagnosis = diagnose(run, bands=bands, with_probes=options.probes, heartbeat=status.update)
    if options.json:
        print(json.dumps(as_json(diagnosis), indent=2, allow_nan=False))
    else:
        show(output_console(pipe_columns=PIPE_COLUMNS), diagnosis)
    if not diagnosis.is_healthy:
        findings = [f"{name} ({found.certainty})" for name, found in diagnosis.findings.items()]
        raise CheckError(f"{run}: {', '.join(findings)}")
    return 0


def show(console: "Console", diagnosis: "Diagnosis") -> None:
    """Print the verdict, a plot of the run and its band, the causes found, and the causes checked."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from quillgpt.lab.doctor.picture import picture

    record, judge = diagnosis.observed.record, diagnosis.observed.judge
    last = record.lines[-1] if record.lines else {"step": 0, "tokens": 0}
    steps = record.environment.get("steps", last["step"])
    console.print(Text(f"{record.path}: step {last['step']:,} of {steps:,}, {last['tokens']:,} tokens", style="bold"))
    console.print(Text(diagnosis.verdict))
    if judge and judge.points:
        width, is_ascii = min(console.width, 72), console.options.ascii_only
        lines = picture(judge.band, judge.points, width=width, height=PICTURE_LINES, is_ascii=is_ascii)
        console.print()
        console.print(Text("\n".join(lines), no_wrap=True, style="cyan"))
        shaded = f"{judge.band.level:.1%} of healthy runs of {judge.band.recipe} ({len(judge.band.seeds)} seeds)"
        console.print(Text(f"       shaded: {shaded}", style="dim"))
    for number, (name, found) in enumerate(diagnosis.findings.items(), start=1):
        console.print()
        console.print(Text(f"{number}. {name}: ", style="bold") + Text(found.certainty, style=COLOURS[found.certainty]))
        table = Table.grid(padding=(0, 1))
        for evidence in found.evidence:
            table.add_row(Text("  ·", style="dim"), Text(evidence))
        table.add_row(Text("  ▸", style="green"), Text(found.remedy, style="green"))
        console.print(table)
    console.print()
    if diagnosis.is_healthy:
        console.print(Text("nothing found", style="bold green"))
    for heading, names in causes_checked(diagnosis).items():
        console.print(Text(f"{heading}:", style="dim"))
        console.print(Padding(Text(names, style="dim"), (0, 0, 0, 3)))


def causes_checked(diagnosis: "Diagnosis") -> dict[str, str]:
    """Return the causes that were not found, and by reason those that could not be checked."""
    found = {"checked and not found": ", ".join(diagnosis.checked)} if diagnosis.checked else {}
    for reason in dict.fromkeys(diagnosis.not_checked.values()):
        names = [name for name, other in diagnosis.not_checked.items() if other == reason]
        found[f"not checked, because {reason}"] = ", ".join(names)
    return found


def as_json(diagnosis: "Diagnosis") -> dict[str, Any]:
    """Return the content of the text output, and the numbers of the probes."""
    observed = diagnosis.observed
    judge, probe = observed.judge, observed.probe
    band = None
    if judge:
        kept = ("recipe", "seeds", "level", "commit", "hardware")
        band = {name: getattr(judge.band, name) for name in kept}
        band["points"] = [dataclasses.asdict(point) | {"excess": point.excess} for point in judge.points]
    return {
        "run": str(observed.record.path),
        "verdict": diagnosis.verdict,
        "is_healthy": diagnosis.is_healthy,
        "findings": [{"cause": name} | dataclasses.asdict(found) for name, found in diagnosis.findings.items()],
        "checked": list(diagnosis.checked),
        "not_checked": diagnosis.not_checked,
        "band": band,
        "probe": plain(dataclasses.asdict(probe)) if probe else None,
    }


def plain(value: Any) -> Any:
    """Convert to JSON types: arrays to lists, numbers that are not finite to None."""
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
