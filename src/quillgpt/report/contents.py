"""What a report tells, in words, tables and figures, before it is known where it will be shown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quillgpt.report.captions import Told
from quillgpt.report.facts import facts_of
from quillgpt.report.figures import main_plots
from quillgpt.report.more_figures import bits_plot, score_plots, statistics_plots
from quillgpt.report.plot import Plot
from quillgpt.report.reference import bands_of, reference_plots
from quillgpt.report.sentences import became, comparison, read_together, trained
from quillgpt.report.subject import Sample, Subject
from quillgpt.report.tables import (
    Card,
    Table,
    cards,
    compressors_table,
    differences,
    environments,
    evaluations,
    headline,
    overview,
    scores_table,
    settings_table,
)
from quillgpt.report.wording import listed, small_count
from quillgpt.run_record import OF_THE_RECORDS


@dataclass(frozen=True, kw_only=True)
class RunPart:
    """What is told of one run alone."""

    label: str
    number: int
    trained: str
    became: str
    overview: Table
    evaluations: Table
    samples: list[Sample]
    samples_left_out: int


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A whole report."""

    title: str
    lead: str
    runs: list[RunPart]
    cards: list[Card]
    headline: Table
    compressors: Table
    bands: list[str]
    comparison: list[str]
    figures: list[Plot]
    score_figures: list[Plot]
    scores: Table
    statistics: list[Plot]
    differences: Table
    settings: Table
    environment: Table
    thinned: str
    sources: list[str]


def contents_of(subjects: Sequence[Subject]) -> Contents:
    """Put together what these runs have to tell."""
    told: Told = [(subject, facts_of(subject)) for subject in subjects]
    parts = [
        RunPart(
            label=subject.label,
            number=subject.number,
            trained=trained(subject, facts),
            became=became(subject, facts),
            overview=overview(subject, facts),
            evaluations=evaluations(subject, facts),
            samples=subject.samples,
            samples_left_out=subject.samples_left_out,
        )
        for subject, facts in told
    ]
    bits = bits_plot(told)
    bands, reasons = bands_of(told)
    figures = [*main_plots(told), *([bits] if bits else []), *reference_plots(told, bands)]
    figures, score_figures, statistics = with_own_keys(figures, score_plots(told), statistics_plots(told))
    labels = [subject.label for subject in subjects]
    different = differences(subjects)
    differing = [row[0] for row in different.rows if row[0] not in OF_THE_RECORDS]  # the table has these too
    several = f"{small_count(len(labels), 'runs').capitalize()} side by side"
    return Contents(
        title=labels[0] if len(labels) == 1 else several,
        lead=" ".join([parts[0].trained, parts[0].became]) if len(labels) == 1 else read_together(told, differing),
        runs=parts,
        cards=cards(*told[0]) if len(told) == 1 else [],
        headline=headline(told),
        compressors=compressors_table(told),
        bands=reasons,
        comparison=comparison(told),
        figures=figures,
        score_figures=score_figures,
        scores=scores_table(told),
        statistics=statistics,
        differences=different,
        settings=settings_table(subjects),
        environment=environments(subjects),
        thinned=_thinned(told),
        sources=[f"{subject.record.path}: {facts.lines:,} lines of metrics" for subject, facts in told],
    )


def with_own_keys(*groups: Sequence[Plot]) -> list[list[Plot]]:
    """The plots, each with a key that no other has: it names a file, and a place on the page."""
    taken: set[str] = set()
    renamed = []
    for plots in groups:
        renamed.append([])
        for plot in plots:
            key, number = plot.key, 1
            while key in taken:
                number += 1
                key = f"{plot.key}-{number}"
            taken.add(key)
            renamed[-1].append(replace(plot, key=key))
    return renamed


def chosen_samples(samples: list[Sample]) -> list[Sample]:
    """The first, the middle and the last."""
    places = sorted({0, (len(samples) - 1) // 2, len(samples) - 1}) if samples else []
    return [samples[place] for place in places]


def _thinned(told: Told) -> str:
    """How the curves were made from the lines."""
    windows = sorted({facts.window for _, facts in told})
    if windows == [1]:
        return "The curves join the logged lines as they are."
    span = listed([f"{window:,}" for window in windows if window > 1])
    return (
        f"Strong lines: weighted means of {span} neighbouring logged lines. Faint: the logged lines themselves; where "
        "they are many, the range from the lowest to the highest of some hundred equal shares. "
        f"Points: held-out loss, with bars of one standard error where they are longer than the mark is high."
    )
