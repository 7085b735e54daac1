"""A run as the report sees it: its records, its samples, what compressors make of its text, and its task scores.

What is missing is said, what is damaged beside the metrics is passed over: a report of a run that still goes on, or
that was made by an older version, is better than none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quillgpt.errors import ConfigError
from quillgpt.report.curves import as_number
from quillgpt.report.scores import Score, scores_of
from quillgpt.report.wording import one_line, visible
from quillgpt.run_dir import RunDirectory
from quillgpt.run_record import RunRecord, read_run

SAMPLES_KEPT = 24  # steps whose samples are told in full
SAMPLE_CHARACTERS = 4_000
SEPARATOR = "\n\n----\n\n"  # as train/write_samples.py puts it between two texts
LONGEST_LABEL = 60
Column = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the model wrote at a step."""

    step: int
    texts: list[str]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One run of a report. `number` says its colour; `label` is its name, told apart from the others' where needed.

    `compressors` are bits per byte of the same held-out text, or the reason why there are none.
    """

    number: int
    label: str
    record: RunRecord
    samples: list[Sample]
    samples_left_out: int
    compressors: dict[str, float] | str
    scores: list[Score]
    _columns: dict[str, Column] = field(default_factory=dict, repr=False)

    def series(self, name: str, over: str = "tokens") -> tuple[np.ndarray, np.ndarray]:
        """Two columns of the metrics, `over` and `name`, as `RunRecord.series` gives them, each read once."""
        (x, has_x), (y, has_y) = self.column(over), self.column(name)
        return x[has_x & has_y], y[has_x & has_y]

    def column(self, name: str) -> Column:
        """A column of the metrics: its numbers, and which lines have one."""
        if name not in self._columns:
            values = [line.get(name) for line in self.record.lines]
            present = np.array([isinstance(value, float) or as_number(value) is not None for value in values], bool)
            numbers = [value if has else 0.0 for value, has in zip(values, present.tolist(), strict=True)]
            self._columns[name] = np.array(numbers, dtype=np.float64), present
        return self._columns[name]

    @property
    def loss_column(self) -> str:
        """Where the loss of training is told best: the mean of all steps between two lines, in newer runs."""
        return "mean_loss" if 2 * self.column("mean_loss")[1].sum() > len(self.record.lines) else "loss"

    def last(self, name: str) -> float | None:
        """The last finite number of a column."""
        values = self.series(name, "step")[1]
        values = values[np.isfinite(values)]
        return float(values[-1]) if len(values) else None

    def environment(self, *path: str) -> Any:
        """A value of environment.json by its path; None where an older run has none."""
        value: Any = self.record.environment
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def told(self, *path: str) -> str:
        """The same as text on one line, or nothing."""
        value = self.environment(*path)
        return "" if value is None else one_line(str(value), longest=200)

    def amount(self, *path: str) -> int:
        """The same as a count; 0 where there is none."""
        value = self.environment(*path)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def read_subjects(places: Sequence[str | Path]) -> list[Subject]:
    """The runs to report on, in the order given; one given twice is a `ConfigError`."""
    paths = [Path(place) for place in places]
    resolved = [path.resolve() for path in paths]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise ConfigError(f"{paths[index]} is given twice; give each run once")
    records = [read_run(path) for path in paths]
    labels = distinct_labels(resolved)
    return [_subject(number, label, record) for number, (label, record) in enumerate(zip(labels, records, strict=True))]


def distinct_labels(paths: list[Path]) -> list[str]:
    """The directories' names, with as many parents in front as it takes to tell them apart."""
    depth = 1
    while True:
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(labels) or depth > max(len(path.parts) for path in paths):
            break
        depth += 1
    short = [one_line(label, longest=LONGEST_LABEL) for label in labels]
    return short if len(set(short)) == len(short) else [f"{label} ({n})" for n, label in enumerate(short, start=1)]


def _subject(number: int, label: str, record: RunRecord) -> Subject:
    samples, left_out = read_samples(RunDirectory(record.path).samples)
    return Subject(
        number=number,
        label=label,
        record=record,
        samples=samples,
        samples_left_out=left_out,
        compressors=compressors_of(record),
        scores=scores_of(record),
    )


def read_samples(folder: Path) -> tuple[list[Sample], int]:
    """The samples by step, evenly chosen where there are many, and how many steps were left out."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("step-*.txt"):
        step = path.stem.removeprefix("step-")
        if step.isascii() and step.isdigit() and path.is_file():
            found.append((int(step), path))
    found.sort()
    last = len(found) - 1
    kept = sorted({round(last * n / (SAMPLES_KEPT - 1)) for n in range(SAMPLES_KEPT)}) if last >= SAMPLES_KEPT else None
    chosen = [found[index] for index in kept] if kept else found
    return [Sample(step=step, texts=_texts(path)) for step, path in chosen], len(found) - len(chosen)


def _texts(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:  # a file of any size is a sample for someone
            content = file.read(4 * SAMPLE_CHARACTERS + 1).decode(errors="replace")
    except OSError:
        return ["(cannot be read)"]
    return [visible(text.removesuffix("\n"), longest=SAMPLE_CHARACTERS) for text in content.split(SEPARATOR)]


def compressors_of(record: RunRecord) -> dict[str, float] | str:
    """What gzip and xz make of the run's held-out text, where `quill demo` has measured it; otherwise why not."""
    data = record.environment.get("data")
    data = data if isinstance(data, Mapping) else {}
    directory = data.get("directory")
    if not isinstance(directory, str):
        return "the run does not say where its data lies"
    path = Path(directory) / "compressors.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return f"no readable {one_line(str(path), longest=120)} (`quill demo` measures them)"
    if not isinstance(content, dict) or content.pop("data", None) != data.get("fingerprint"):
        return f"{one_line(str(path), longest=120)} is of other data"
    figures = {one_line(str(name), longest=60): value for name, value in content.items()}
    return {
        name: value for name, known in figures.items() if (value := as_number(known)) is not None and 0 < value < 1e6
    }
