"""`quill doctor RUN`: is the run what its recipe gives, and if not, why not."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from quillgpt.cli.arguments import parse
from quillgpt.errors import CheckError

if TYPE_CHECKING:
    from rich.console import Console

    from quillgpt.doctor import Diagnosis

PIPE_COLUMNS = 100  # a pipe has no width of its own
PICTURE_LINES = 9
COLOURS = {"certain": "bold red", "very likely": "red", "likely": "yellow", "possible": "dim"}


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Compare a run with its recipe's reference band, and look for what may be wrong with it.

    The band says where the training loss of a healthy run lies; each cause that is found comes with the numbers that
    speak for it and with what to do. Where the run has a checkpoint and its data is there, a few seconds of probes are
    made on them. Ends with 0 where nothing is found, with 76 where something is. docs/doctor.md explains each cause.
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[RUN]")] = ""
    """run to examine, finished or not; nothing: the newest run under runs/"""
    band: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """a reference band of your own, from benchmarks/reference_bands.py"""
    probes: bool = True
    """score held-out text and a few batches with the newest checkpoint; without, only the records are read"""
    json: bool = False
    """print JSON instead of text"""


def main(arguments: list[str]) -> int:
    """Examine a run and print what was found; anything found is a `CheckError`."""
    options, _ = parse(DoctorOptions, arguments, prog="quill doctor")

    from rich.console import Console

    from quillgpt.doctor import diagnose
    from quillgpt.evaluate.bands import read_band
    from quillgpt.run_dir import newest_run

    run = options.run or str(newest_run())
    bands = [read_band(Path(options.band))] if options.band else None
    with Console(stderr=True).status("reading the records") as status:
        diagnosis = diagnose(run, bands=bands, with_probes=options.probes, heartbeat=status.update)
    if options.json:
        print(json.dumps(as_json(diagnosis), indent=2, allow_nan=False))
    else:
        columns = shutil.get_terminal_size(fallback=(PIPE_COLUMNS, 50)).columns
        show(Console(width=columns, highlight=False), diagnosis)
    if not diagnosis.is_healthy:
        raise CheckError(
            f"{run}: {', '.join(f'{name} ({found.certainty})' for name, found in diagnosis.findings.items())}"
        )
    return 0


def show(console: "Console", diagnosis: "Diagnosis") -> None:
    """Print the verdict, the run in its band, the causes, and what was looked for."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from quillgpt.doctor.picture import picture

    record, judge = diagnosis.observed.record, diagnosis.observed.judge
    last = record.lines[-1] if record.lines else {"step": 0, "tokens": 0}
    steps = record.environment.get("steps", last["step"])
    console.print(Text(f"{record.path}: step {last['step']:,} of {steps:,}, {last['tokens']:,} tokens", style="bold"))
    console.print(Text(diagnosis.verdict))
    if judge and judge.points:
        lines = picture(judge.band, judge.points, width=min(console.width, 72), height=PICTURE_LINES)
        console.print()
        console.print(Text("\n".join(lines), no_wrap=True, style="cyan"))
        console.print(Text(f"       {about(diagnosis)}", style="dim"))
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
    for heading, names in looked_for(diagnosis).items():
        console.print(Text(f"{heading}:", style="dim"))
        console.print(Padding(Text(names, style="dim"), (0, 0, 0, 3)))


def about(diagnosis: "Diagnosis") -> str:
    """What the shaded band is."""
    band = diagnosis.observed.band
    assert band is not None
    return f"shaded: where {band.level:.1%} of healthy runs of {band.recipe} are ({len(band.seeds)} seeds)"


def looked_for(diagnosis: "Diagnosis") -> dict[str, str]:
    """What was looked for and not found, and what could not be looked for, by the reason."""
    found = {"looked for and not found": ", ".join(diagnosis.checked)} if diagnosis.checked else {}
    for reason in dict.fromkeys(diagnosis.not_checked.values()):
        names = [name for name, other in diagnosis.not_checked.items() if other == reason]
        found[f"not looked for, because {reason}"] = ", ".join(names)
    return found


def as_json(diagnosis: "Diagnosis") -> dict[str, Any]:
    """All that the text shows, and the probes' numbers."""
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
    """A value that JSON has: columns as lists, numbers that are not finite as null."""
    import math

    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
