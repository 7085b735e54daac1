"""The runs of a report: their records, samples and compressors, and the numbers that a reader asks for first.

What is missing is None or empty, and damaged files other than the metrics are skipped: a run that is still training or
that was made by an older version can be reported on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quillgpt.errors import ConfigError
from quillgpt.lab.report.scores import scores_of
from quillgpt.lab.report.series import as_number, evenly, finite, smoothing_window
from quillgpt.lab.report.text import one_line, visible, with_error
from quillgpt.lab.run_record import RunRecord, read_run
from quillgpt.run_dir import RunDirectory

SAMPLES_KEPT = 24  # steps whose samples are shown
SAMPLE_CHARACTERS = 4_000
SEPARATOR = "\n\n----\n\n"  # as training/loop.py puts it between two texts
LONGEST_LABEL = 60


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One evaluation on validation data: nats per token with the standard error, bits per byte, and when."""

    loss: float
    error: float | None
    bits_per_byte: float | None
    step: int
    tokens: float | None
    elapsed_seconds: float | None

    @property
    def bits_error(self) -> float | None:
        """The standard error of the bits per byte: the same share of them as of the loss."""
        if self.error is None or self.bits_per_byte is None or self.loss <= 0:
            return None
        return self.error / self.loss * self.bits_per_byte

    @property
    def text(self) -> str:
        """The loss ± its error."""
        return with_error(self.loss, self.error)

    @property
    def bits_text(self) -> str:
        """The bits per byte ± their error; empty if unknown."""
        return "" if self.bits_per_byte is None else with_error(self.bits_per_byte, self.bits_error)


@dataclass(frozen=True, kw_only=True)
class StepSamples:
    """The texts that the model wrote at a step."""

    step: int
    texts: list[str]


class ReportedRun:
    """One run of a report; `number` decides its colour, `label` is its name in the report.

    Training losses are means of `window` logged lines, in nats per token. `compressors` has the bits per byte of the
    same validation text, or is the reason why there are none.
    """

    def __init__(self, number: int, label: str, record: RunRecord) -> None:
        self.number, self.label, self.record = number, label, record
        self._columns: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.samples, self.samples_left_out = read_samples(RunDirectory(record.path).samples)
        self.compressors = compressors_of(record)
        self.scores = scores_of(record)
        self.validations = _validations(record)
        self.first = self.validations[0] if self.validations else None
        self.last = self.validations[-1] if self.validations else None
        self.best = min(self.validations, key=lambda entry: entry.loss, default=None)

        self.step, self.tokens = int(self.final("step") or 0), int(self.final("tokens") or 0)
        self.planned_steps = self.count("steps") or (0 if record.config.train.minutes else record.config.train.steps)
        self.is_finished = 0 < self.planned_steps <= self.step
        train_tokens = self.count("data", "train_tokens")
        self.epochs = self.tokens / train_tokens if train_tokens else None
        self.seconds, self.memory_bytes = self.final("elapsed_seconds"), self.final("memory_bytes")
        self.parameters = self.count("parameters")

        most_lines_have_it = 2 * self.column("train_loss_mean")[1].sum() > len(record.lines)
        self.loss_column = (
            "train_loss_mean" if most_lines_have_it else "train_loss"
        )  # the mean of all steps, in newer runs
        loss = self._finite(self.loss_column)
        self.window = smoothing_window(len(loss))
        self.first_loss = float(loss[0]) if len(loss) else None
        self.last_loss = float(loss[-(self.window // 2 + 1) :].mean()) if len(loss) else None
        lr, norm, speed = self._finite("lr"), self._finite("grad_norm"), self._finite("tokens_per_second")
        self.lr_range = (float(lr.max()), float(lr[-1])) if len(lr) else None  # the highest and the last
        self.tokens_per_second = float(np.median(speed[speed > 0])) if (speed > 0).any() else None
        self.clip = record.config.optim.gradient_clip
        self.median_norm = float(np.median(norm)) if len(norm) else None
        self.clipped_share = float((norm > self.clip).mean()) if self.clip and len(norm) else None
        self.skipped = sum(bool(line.get("skipped")) for line in record.lines)
        self.not_finite = int((~np.isfinite(self.series("train_loss", "step")[1])).sum())

    def series(self, name: str, over: str = "tokens") -> tuple[np.ndarray, np.ndarray]:
        """Two columns of the metrics, `over` and `name`, (n,) each, from the lines that have both."""
        (x, has_x), (y, has_y) = self.column(over), self.column(name)
        return x[has_x & has_y], y[has_x & has_y]

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A column of the metrics, (n,), and which lines have a number there, (n,) bool."""
        if name not in self._columns:
            values = [line.get(name) for line in self.record.lines]
            present = np.array([isinstance(value, float) or as_number(value) is not None for value in values], bool)
            numbers = [value if has else 0.0 for value, has in zip(values, present.tolist(), strict=True)]
            self._columns[name] = np.array(numbers, dtype=np.float64), present
        return self._columns[name]

    def final(self, name: str) -> float | None:
        """The last finite number of a column."""
        values = self.series(name, "step")[1]
        values = values[np.isfinite(values)]
        return float(values[-1]) if len(values) else None

    def environment(self, *path: str) -> Any:
        """A value of environment.json by its path; None if it is missing."""
        value: Any = self.record.environment
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def text(self, *path: str) -> str:
        """A value of environment.json as text on one line; empty if it is missing."""
        value = self.environment(*path)
        return "" if value is None else one_line(str(value), longest=200)

    def count(self, *path: str) -> int:
        """A value of environment.json as a count; 0 if it is missing."""
        value = self.environment(*path)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    def _finite(self, name: str) -> np.ndarray:
        return finite(*self.series(name, "step"))[1]


def read_runs(places: Sequence[str | Path]) -> list[ReportedRun]:
    """The runs in the order given; one that is given twice is a `ConfigError`."""
    paths = [Path(place) for place in places]
    resolved = [path.resolve() for path in paths]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise ConfigError(f"{paths[index]} is given twice; give each run once")
    records = [read_run(path) for path in paths]
    labels = distinct_labels(resolved)
    return [ReportedRun(number, *pair) for number, pair in enumerate(zip(labels, records, strict=True))]


def distinct_labels(paths: list[Path]) -> list[str]:
    """The names of the directories, with enough parents to distinguish them."""
    depth, labels = 1, [path.name for path in paths]
    while len(set(labels)) < len(labels) and depth <= max(len(path.parts) for path in paths):
        depth += 1
        labels = ["/".join(path.parts[-depth:]) for path in paths]
    short = [one_line(label, longest=LONGEST_LABEL) for label in labels]
    return short if len(set(short)) == len(short) else [f"{label} ({n})" for n, label in enumerate(short, start=1)]


def _validations(record: RunRecord) -> list[Validation]:
    found = []
    for line in record.lines:
        loss, step = as_number(line.get("val_loss")), as_number(line.get("step"))
        if loss is None or step is None:
            continue
        found.append(
            Validation(
                loss=loss,
                error=as_number(line.get("val_loss_stderr")),
                bits_per_byte=as_number(line.get("val_bpb")),
                step=int(step),
                tokens=as_number(line.get("tokens")),
                elapsed_seconds=as_number(line.get("elapsed_seconds")),
            )
        )
    return found


def read_samples(folder: Path) -> tuple[list[StepSamples], int]:
    """The samples by step, evenly chosen if there are many, and the number of steps left out."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("step-*.txt"):
        step = path.stem.removeprefix("step-")
        if step.isascii() and step.isdigit() and path.is_file():
            found.append((int(step), path))
    found.sort()
    kept = [found[index] for index in evenly(len(found), SAMPLES_KEPT).tolist()]
    return [StepSamples(step=step, texts=_texts(path)) for step, path in kept], len(found) - len(kept)


def _texts(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:  # only the beginning of a huge file
            content = file.read(4 * SAMPLE_CHARACTERS + 1).decode(errors="replace")
    except OSError:
        return ["(cannot be read)"]
    return [visible(text.removesuffix("\n"), longest=SAMPLE_CHARACTERS) for text in content.split(SEPARATOR)]


def compressors_of(record: RunRecord) -> dict[str, float] | str:
    """Bits per byte of gzip and xz on the run's validation text, if `quill demo` has measured them, or why not."""
    data = record.environment.get("data")
    data = data if isinstance(data, Mapping) else {}
    directory = data.get("directory")
    if not isinstance(directory, str):
        return "the run does not record its data directory"
    path = Path(directory) / "compressors.json"
    name = one_line(str(path), longest=120)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return f"no readable {name} (`quill demo` measures them)"
    if not isinstance(content, dict) or content.pop("data", None) != data.get("fingerprint"):
        return f"{name} is of other data"
    numbers = {one_line(str(name), longest=60): as_number(value) for name, value in content.items()}
    return {name: value for name, value in numbers.items() if value is not None and 0 < value < 1e6}
