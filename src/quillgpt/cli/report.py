"""`quill report RUN...`: report on runs as one HTML file, as PNG figures, or as text in the terminal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from quillgpt.cli.arguments import flag, parse
from quillgpt.errors import ConfigError

DESCRIPTION = """\
Report on runs: what was trained on what, the curves, task scores, samples, settings, environment.

Without --png and --text it writes one HTML file that needs no network and runs no script. Several runs share the \
figures. A run that is still training can be reported on too. The figures need quillgpt[lab]; --text does not."""
LONGEST_NAME = 80
MOST_RUNS = 28  # that differ in colour or dash


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """The help is `DESCRIPTION`."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[RUN ...]")] = ()
    """run directories; by default the newest run under runs/"""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")] = "auto"
    """HTML file to write; auto: RUN/report.html, for several runs reports/A-B.html"""
    png: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""
    """write only the figures, as PNG for a paper, into this directory"""
    text: Annotated[bool, flag("print the report in the terminal")] = False


def main(arguments: list[str]) -> int:
    """Run `quill report`."""
    options, _ = parse(ReportOptions, arguments, prog="quill report", description=DESCRIPTION)
    _check(options)
    from quillgpt.lab.report.page import Report, write_page
    from quillgpt.lab.report.plot import require_matplotlib, write_figures
    from quillgpt.lab.report.runs import read_runs
    from quillgpt.lab.report.text import size
    from quillgpt.run_dir import newest_run

    if not options.text:
        require_matplotlib()
    runs = [Path(run) for run in options.runs] or [newest_run()]
    out = default_out(runs) if options.out == "auto" else Path(options.out)
    if not (options.text or options.png):
        _check_replaceable(out)
    report = Report(read_runs(runs))
    if options.text:
        from rich.console import Console

        from quillgpt.lab.report.terminal import print_report

        print_report(Console(highlight=False), report)
    elif options.png:
        written = write_figures(report.plots, Path(options.png))
        print(f"{len(written)} figures in {options.png}: {', '.join(path.name for path in written)}")
    else:
        print(f"{out} ({size(write_page(report, out))})")
    return 0


def _check(options: ReportOptions) -> None:
    if options.text and options.png:
        raise ConfigError("--text prints and --png writes figures; give one of them")
    if options.out != "auto" and (options.text or options.png):
        raise ConfigError("--out names the HTML file; leave it out with --text and --png")
    if not options.out:
        raise ConfigError("--out is empty; name a file, as in --out report.html")
    if len(options.runs) > MOST_RUNS:
        raise ConfigError(f"{len(options.runs)} runs are too many for one report (at most {MOST_RUNS})")


def default_out(runs: list[Path]) -> Path:
    """RUN/report.html; for several runs reports/A-B.html, cut where that would be long."""
    if len(runs) == 1:
        return runs[0] / "report.html"
    names = [run.resolve().name or "run" for run in runs]
    joined = "-".join(names)
    if len(joined) > LONGEST_NAME:
        joined = f"{names[0][: LONGEST_NAME - 20]}-and-{len(names) - 1}-more"
    return Path("reports") / f"{joined}.html"


def _check_replaceable(out: Path) -> None:
    """Refuse to replace a file that is not a report."""
    from quillgpt.lab.report.page import MARK

    if out.is_dir():
        raise ConfigError(f"--out {out} is a directory; name a file in it, such as {out / 'report.html'}")
    if out.is_file():
        with out.open("rb") as file:
            is_report = MARK.encode() in file.read(4096)
        if not is_report:
            raise ConfigError(f"{out} exists and is not a report of quill's; choose another --out")
