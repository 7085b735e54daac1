"""`quill compare RUN_A RUN_B ...`: whether groups of runs differ by more than the noise between seeds."""

import glob
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from quillgpt.cli.arguments import parse
from quillgpt.cli.console import output_console, plain_table
from quillgpt.errors import ConfigError, shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from quillgpt.lab.compare.comparison import Comparison
    from quillgpt.lab.compare.measures import Measure
    from quillgpt.lab.run_record import RunRecord

PIPE_COLUMNS = 120
WIDEST_LABEL = 18
DESCRIPTION = """\
Compare runs: those that differ in nothing but the seed are one group, and each group is compared with the first.

Shows the settings that differ, training and validation loss at equal steps, tokens and seconds of training, the \
difference with its 95 % interval, and a verdict. With one seed each no verdict is possible: \
`quill train RECIPE --seeds 3` makes repeats. docs/compare.md explains every number."""
HOW_READ = (
    "mean ± standard deviation over seeds. Validation losses are interpolated between evaluations, never extrapolated; "
    "a training loss is the mean of the last tenth of the logged lines. Seconds are of training only."
)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `quill compare`; the help is `DESCRIPTION`."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN_A RUN_B ...")] = ()
    """run directories, or patterns such as runs/debug-seed-*; the group of the first is the baseline"""
    json: bool = False
    """print JSON instead of tables"""


def main(arguments: list[str]) -> int:
    """Compare, and print tables or JSON."""
    options, _ = parse(CompareOptions, arguments, prog="quill compare", description=DESCRIPTION)
    if not options.runs:
        raise ConfigError("no run given: quill compare RUN_A RUN_B ..., where each is a directory with a config.toml")
    runs = [path for word in options.runs for path in matching(word)]

    from quillgpt.lab.compare.comparison import compare_runs

    comparison = compare_runs(runs)
    if options.json:
        print(json.dumps(comparison.as_json(), indent=2, ensure_ascii=False))
    else:
        print_comparison(output_console(pipe_columns=PIPE_COLUMNS), comparison)
    return 0


def matching(word: str) -> list[Path]:
    """Return the run of that name, or those that match a pattern the shell did not expand."""
    if not glob.has_magic(word) or Path(word).exists():
        return [Path(word)]
    found = [Path(path) for path in sorted(glob.glob(word)) if (Path(path) / "config.toml").is_file()]
    if not found:
        raise ConfigError(f"no run matches {shown(word)}; `ls runs` lists them")
    return found


def print_comparison(console: "Console", comparison: "Comparison") -> None:
    """Print groups, differences, losses, contrasts and verdicts."""
    from rich.text import Text

    tables = [groups_table(comparison)]
    if comparison.differing or comparison.machines:
        tables.append(settings_table(comparison))
    tables += losses_tables(comparison)
    if comparison.contrasts:
        tables.append(contrasts_table(comparison))
    for table in tables:
        console.print(table)
        console.print()
    console.print(Text(HOW_READ, style="dim"))
    for note in comparison.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    console.print()
    for verdict in comparison.verdicts:
        style = {"better": "bold green", "worse": "bold red"}.get(verdict.verdict, "bold")
        opening, stop, rest = verdict.sentence.partition(". ")
        console.print(Text.assemble((opening + stop, style), rest))
        for command in verdict.commands:
            console.print(Text(f"  {command}"), soft_wrap=True)


def groups_table(comparison: "Comparison") -> "Table":
    """Return the runs of each group and how far they got."""
    table = plain_table("", "runs", "seeds", "n", "steps", "tokens", "seconds", left=range(3))
    for group in comparison.groups:
        columns = [[run.series("train_loss", over)[0] for run in group.runs] for over in ("tokens", "elapsed_seconds")]
        tokens, seconds = [[max(column, default=math.nan) for column in runs] for runs in columns]
        steps = ", ".join(dict.fromkeys(map(steps_text, group.runs)))
        cells = [group.name, group.label, ranges(group.seeds), str(len(group.seeds)), steps]
        table.add_row(*cells, spanned(tokens, ",.0f"), spanned(seconds, ",.1f"))
    return table


def steps_text(run: "RunRecord") -> str:
    """The steps that a run has done, and those it was to do if they are more."""
    from quillgpt.lab.compare.measures import planned_steps, steps_done

    done, planned = steps_done(run), planned_steps(run)
    return f"{done:,}" + (f" of {planned:,}" if done < planned else "")


def settings_table(comparison: "Comparison") -> "Table":
    """Return the settings that differ; below them, dim, the differences of the machines."""
    names = [group.name for group in comparison.groups]
    table = plain_table("what differs", *names, left=range(1 + len(names)))
    for name, values in comparison.differing.items():
        table.add_row(name, *(str(value) for value in values))
    for name, values in comparison.machines.items():
        table.add_row(f"{name} *", *values, style="dim")
    if comparison.machines:
        table.caption, table.caption_justify = "* not counted as a difference of the experiment", "left"
    return table


def losses_tables(comparison: "Comparison") -> list["Table"]:
    """Return a table for each kind of loss, with a column for each point at which it was read."""
    from quillgpt.lab.compare.measures import END, TRAINING, VALIDATION

    titles = {TRAINING: "training loss", VALIDATION: "validation loss"}
    tables = []
    ends = [measure for measure in comparison.measures if measure.over == END]
    for name in dict.fromkeys(measure.name for measure in comparison.measures if measure.over != END):
        columns = [measure for measure in comparison.measures if measure.name == name and measure.over != END]
        title = f"{titles.get(name, 'validation text')}, {columns[0].unit}"
        tables.append(_losses(comparison, title, columns, [measure.place for measure in columns]))
    if ends:
        tables.append(_losses(comparison, "validation, at the end", ends, [measure.unit for measure in ends]))
    return tables


def _losses(comparison: "Comparison", title: str, columns: Sequence["Measure"], headings: Sequence[str]) -> "Table":
    table = plain_table(WIDEST_LABEL * " ", *headings, left=[0], title=title)
    for number, group in enumerate(comparison.groups):
        label = f"{group.name}  {group.label}"
        label = label if len(label) <= WIDEST_LABEL else f"{label[: WIDEST_LABEL - 1]}…"
        table.add_row(label, *(str(measure.samples[number]) for measure in columns))
    return table


def contrasts_table(comparison: "Comparison") -> "Table":
    """Return the difference of each group from the baseline in each validation measure."""
    from quillgpt.lab.compare.comparison import signed, span

    title = f"difference of validation loss, {comparison.contrasts[0].measure.unit}"
    table = plain_table("", "", "95 % interval", left=[0], title=title)
    for contrast in comparison.contrasts:
        baseline, other = contrast.samples
        table.add_row(
            f"{contrast.other.name} - {contrast.baseline.name}  {contrast.measure.place}",
            signed(other.mean - baseline.mean),
            span(contrast.intervals[0]) if contrast.intervals else "needs more seeds",
        )
    return table


def ranges(numbers: Sequence[int]) -> str:
    """Format integers with consecutive ones joined: 1-3, 7."""
    rows: list[list[int]] = []
    for number in sorted(numbers):
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    return ", ".join(f"{row[0]}-{row[-1]}" if len(row) > 1 else str(row[0]) for row in rows)


def spanned(values: Sequence[float], form: str) -> str:
    """One number, or the minimum and maximum if they differ."""
    ends = dict.fromkeys(format(value, form) for value in (min(values), max(values)))
    return " to ".join(ends)
