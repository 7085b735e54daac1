"""`quill compare RUN_A RUN_B ...`: what differs, losses at equal places, whether the difference is more than noise."""

import glob
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from quillgpt.cli.arguments import parse
from quillgpt.errors import ConfigError, shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from quillgpt.compare import Comparison
    from quillgpt.compare.difference import Sample
    from quillgpt.compare.readings import Measure

PIPE_COLUMNS = 120  # a pipe has no width of its own
WIDEST_LABEL = 18
DESCRIPTION = """\
Compare runs: those that differ in nothing but the seed are one group, and each group is held against the first.

Shows what differs in their settings, training and held-out loss at equal steps, tokens and seconds of training, the \
difference with its 95 % interval, and a verdict in words. With one seed each no verdict is possible: \
`quill train RECIPE --seeds 3` makes the repeats. docs/compare.md explains every number."""
HOW_READ = (
    "mean ± standard deviation over seeds. Held-out losses are interpolated between evaluations, never beyond; a "
    "training loss is the mean of the last tenth of the logged lines. Seconds are of training alone."
)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The help is `DESCRIPTION`."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN_A RUN_B ...")] = ()
    """run directories, or patterns such as runs/debug-seed-*; the group of the first is the baseline"""
    json: bool = False
    """print JSON instead of tables"""


def main(arguments: list[str]) -> int:
    """Compare, and print tables or JSON."""
    options, _ = parse(CompareOptions, arguments, prog="quill compare", description=DESCRIPTION)
    if not options.runs:
        raise ConfigError("which runs? `quill compare RUN_A RUN_B ...`, where each is a directory with a config.toml")
    runs = [path for word in options.runs for path in matching(word)]

    from rich.console import Console

    from quillgpt.compare import compare_runs

    comparison = compare_runs(runs)
    if options.json:
        print(json.dumps(comparison.as_json(), indent=2, ensure_ascii=False))
    else:
        width = shutil.get_terminal_size(fallback=(PIPE_COLUMNS, 50)).columns
        print_comparison(Console(width=width, highlight=False), comparison)
    return 0


def matching(word: str) -> list[Path]:
    """The run a word names, or those of a pattern that the shell left as it is."""
    if not glob.has_magic(word) or Path(word).exists():
        return [Path(word)]
    found = [Path(path) for path in sorted(glob.glob(word)) if (Path(path) / "config.toml").is_file()]
    if not found:
        raise ConfigError(f"no run matches {shown(word)}; `ls runs` shows what there is")
    return found


def print_comparison(console: "Console", comparison: "Comparison") -> None:
    """Print groups, differences, losses, contrasts and verdicts."""
    from rich.text import Text

    tables = [groups_table(comparison)]
    if comparison.differing or comparison.besides:
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
        style = {"better": "bold green", "worse": "bold red"}.get(verdict.word, "bold")
        opening, stop, rest = verdict.sentence.partition(". ")
        console.print(Text.assemble((opening + stop, style), rest))
        for command in verdict.commands:
            console.print(Text(f"  {command}"), soft_wrap=True)


def groups_table(comparison: "Comparison") -> "Table":
    """Which runs are in which group, and how far they went."""
    from quillgpt.compare.readings import planned_steps, steps_done

    table = _table("", "runs", "seeds", "n", "steps", "tokens", "seconds", left=3)
    for group in comparison.groups:
        steps = dict.fromkeys(
            f"{steps_done(run):,}" + ("" if steps_done(run) >= planned_steps(run) else f" of {planned_steps(run):,}")
            for run in group.runs
        )
        tokens = [max(run.series("loss", "tokens")[0], default=math.nan) for run in group.runs]
        seconds = [max(run.series("loss", "elapsed_seconds")[0], default=math.nan) for run in group.runs]
        table.add_row(
            group.name,
            group.label,
            ranges(group.seeds),
            str(len(group.seeds)),
            ", ".join(steps),
            spanned(tokens, ",.0f"),
            spanned(seconds, ",.1f"),
        )
    return table


def settings_table(comparison: "Comparison") -> "Table":
    """What differs, a row each; what differs besides the experiment below it and dim."""
    table = _table("what differs", *(group.name for group in comparison.groups), left=1 + len(comparison.groups))
    for name, values in comparison.differing.items():
        table.add_row(name, *(str(value) for value in values))
    for name, values in comparison.besides.items():
        table.add_row(f"{name} *", *values, style="dim")
    if comparison.besides:
        table.caption, table.caption_justify = "* not counted as a difference of the experiment", "left"
    return table


def losses_tables(comparison: "Comparison") -> list["Table"]:
    """A table for each kind of loss, with a column for each place where it was read."""
    from quillgpt.compare.readings import END, HELD_OUT, TRAINING
    from quillgpt.compare.verdict import place, unit

    titles = {TRAINING: "training loss", HELD_OUT: "held-out loss"}
    tables = []
    ends = [measure for measure in comparison.measures if measure.over == END]
    for name in dict.fromkeys(measure.name for measure in comparison.measures if measure.over != END):
        columns = [measure for measure in comparison.measures if measure.name == name and measure.over != END]
        title = f"{titles.get(name, 'held-out text')}, {unit(columns[0])}"
        tables.append(_losses(comparison, title, columns, [place(measure) for measure in columns]))
    if ends:
        tables.append(_losses(comparison, "held out, at the end", ends, [unit(measure) for measure in ends]))
    return tables


def _losses(comparison: "Comparison", title: str, columns: Sequence["Measure"], headings: Sequence[str]) -> "Table":
    table = _table(WIDEST_LABEL * " ", *headings, title=title)
    for number, group in enumerate(comparison.groups):
        label = f"{group.name}  {group.label}"
        label = label if len(label) <= WIDEST_LABEL else f"{label[: WIDEST_LABEL - 1]}…"
        table.add_row(label, *(figure(measure.samples[number]) for measure in columns))
    return table


def contrasts_table(comparison: "Comparison") -> "Table":
    """Each group against the baseline by each held-out measure."""
    from quillgpt.compare.verdict import place, signed, span, unit

    title = f"difference of held-out loss, {unit(comparison.contrasts[0].measure)}"
    table = _table("", "", "95 % interval", title=title)
    for contrast in comparison.contrasts:
        baseline, other = contrast.samples
        table.add_row(
            f"{contrast.other.name} - {contrast.baseline.name}  {place(contrast.measure)}",
            signed(other.mean - baseline.mean),
            span(contrast.intervals[0]) if contrast.intervals else "needs more seeds",
        )
    return table


def _table(*headings: str, left: int = 1, title: str = "") -> "Table":
    """An empty table without lines; the first columns are text, the others numbers."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", pad_edge=False)
    if title:
        table.title, table.title_justify, table.title_style = title, "left", "bold"
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < left else "right")
    return table


def figure(sample: "Sample") -> str:
    """A sample as it is printed: 2.4220 ± 0.0352; the number alone where there is one; a dash of none."""
    if not sample.n:
        return "-"
    return f"{sample.mean:.4f}" + (f" ± {sample.standard_deviation:.4f}" if sample.n > 1 else "")


def ranges(numbers: Sequence[int]) -> str:
    """Whole numbers with rows of consecutive ones shortened: 1-3, 7."""
    rows: list[list[int]] = []
    for number in sorted(numbers):
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    return ", ".join(f"{row[0]}-{row[-1]}" if len(row) > 1 else str(row[0]) for row in rows)


def spanned(values: Sequence[float], form: str) -> str:
    """One number, or the least and the most where they differ."""
    ends = dict.fromkeys(format(value, form) for value in (min(values), max(values)))
    return " to ".join(ends)
