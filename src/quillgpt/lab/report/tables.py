"""The tables of a report: headline numbers, evaluations, scores, settings and their differences, environment."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quillgpt.config import meanings
from quillgpt.lab.report.runs import ReportedRun
from quillgpt.lab.report.series import evenly
from quillgpt.lab.report.text import count, duration, number, one_line, size, with_error

MOST_ROWS = 60
UNKNOWN = "–"
Runs = Sequence[ReportedRun]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells; the first cell of a row is its heading. `numbers` are the columns that hold numbers."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    numbers: tuple[int, ...] = ()
    note: str = ""


class Card(NamedTuple):
    """A headline number: its name, its value, its error, and its unit or what it compares with."""

    name: str
    value: str
    error: str
    unit: str


def cards(run: ReportedRun) -> list[Card]:
    """The headline numbers of one run."""
    found: list[tuple[str, str, str]] = []
    last, best = run.last, run.best
    if last is not None:
        found.append(("Validation loss", last.text, "nats per token"))
    if last is not None and best is not None and best is not last:
        found.append(("Best validation loss", best.text, f"at step {best.step:,}"))
    if last is not None and last.bits_per_byte is not None:
        unit = "of validation text"
        if isinstance(run.compressors, dict) and run.compressors:
            name, value = next(iter(run.compressors.items()))
            unit = f"{last.bits_per_byte / value:.2f} of {name}'s {value:.3f}"
        found.append(("Bits per byte", last.bits_text, unit))
    if run.last_loss is not None:
        found.append(("Training loss", f"{run.last_loss:.3f}", "nats per token, smoothed"))
    if run.tokens:
        found.append(("Tokens", count(run.tokens), f"in {count(run.step, 'steps')}"))
    if run.seconds is not None:
        speed = f"{number(run.tokens_per_second)} tokens/s" if run.tokens_per_second else ""
        found.append(("Time", duration(run.seconds), speed))
    return [Card(name, *_split_error(text), unit) for name, text, unit in found]


def _split_error(text: str) -> tuple[str, str]:
    value, sign, error = text.partition(" ± ")
    return value, f"± {error}" if sign else ""


def compressors_table(runs: Runs) -> Table:
    """Bits per byte of the models and of compressors on the same validation text, the largest first."""
    compressors = common_compressors(runs)
    entries = [(value, name, f"{value:.3f}") for name, value in compressors.items()]
    models = [
        (run.last.bits_per_byte, run.label, run.last.bits_text) for run in runs if run.last and run.last.bits_per_byte
    ]
    first = next(iter(compressors), "")
    rows = [
        [name, text, f"{value / compressors[first]:.2f}"]
        for value, name, text in sorted([*entries, *models], reverse=True)
        if compressors and models
    ]
    return Table(
        caption="The same validation text, in bits per byte",
        columns=["", "bits per byte", f"of {first}'s"],
        rows=rows,
        numbers=(1, 2),
        note="A compressor starts without knowledge, unless its name says otherwise; a model has read the training "
        "text.",
    )


def common_compressors(runs: Runs) -> dict[str, float]:
    """The compressors' bits per byte if they are the same for all runs, so that the runs have the same text."""
    first, *others = [run.compressors for run in runs]
    return first if isinstance(first, dict) and all(other == first for other in others) else {}


def headline(runs: Runs) -> Table:
    """The headline numbers of every run, one row each."""
    names = ["run", "validation loss", "best validation loss", "bits per byte", "training loss", "tokens", "time"]
    rows = []
    for run in runs:
        last, best = run.last, run.best
        at_step = f" at step {best.step:,}" if best and best is not last else ""
        rows.append(
            [
                run.label,
                last.text if last else UNKNOWN,
                f"{best.text}{at_step}" if best else UNKNOWN,
                (last.bits_text if last else "") or UNKNOWN,
                f"{run.last_loss:.3f}" if run.last_loss is not None else UNKNOWN,
                count(run.tokens),
                duration(run.seconds) if run.seconds is not None else UNKNOWN,
            ]
        )
    return Table(caption="Where the runs ended", columns=names, rows=rows, numbers=(1, 2, 3, 4, 5, 6))


def overview(run: ReportedRun) -> Table:
    """Model, data, steps, speed and hardware of one run."""
    config, text = run.record.config, run.text
    model = config.model
    shape = f"{model.n_layer} layers, {model.n_embd} wide, {model.n_head} heads, context {model.context_length:,}"
    vocab_size, threads = run.count("data", "vocab_size"), run.count("runtime", "threads")
    fraction = f", {number(run.epochs)} of the training text" if run.epochs is not None else ""
    steps = f"{run.step:,} of {run.planned_steps:,}" if run.planned_steps else f"{run.step:,}"
    status = "" if run.is_finished or not run.planned_steps else ": still training, or stopped"
    rows = {
        "model": _joined(count(run.parameters, "parameters") if run.parameters else "", shape),
        "block": f"{model.attention} attention, {model.mlp}, {model.norm}, {model.position} positions",
        "data": _joined(text("data", "source") or config.data.source, text("data", "directory")),
        "licence": text("data", "licence"),
        "training text": count(run.count("data", "train_tokens"), "tokens"),
        "validation text": count(run.count("data", "val_tokens"), "tokens"),
        "tokenizer": _joined(
            text("data", "tokenizer") or config.data.tokenizer, f"{vocab_size:,} tokens" if vocab_size else ""
        ),
        "steps": f"{steps}{status}",
        "batch": count(round(run.tokens / run.step), "tokens") if run.step and run.tokens else "",
        "tokens seen": f"{count(run.tokens)}{fraction}",
        "time": duration(run.seconds) if run.seconds is not None else "",
        "throughput": f"{number(run.tokens_per_second)} tokens/s, median" if run.tokens_per_second else "",
        "memory": f"{size(run.memory_bytes)} at its largest" if run.memory_bytes else "",
        "hardware": _joined(
            *(text("processor"), text("runtime", "device"), text("runtime", "dtype")),
            count(threads, "threads") if threads and text("runtime", "device") == "cpu" else "",
        ),
    }
    known = [[name, one_line(cell, longest=240)] for name, cell in rows.items() if cell and cell != "0 tokens"]
    return Table(caption="What was trained", columns=["", ""], rows=known)


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def validations_table(run: ReportedRun) -> Table:
    """Every evaluation on validation data, or evenly chosen ones if they are many."""
    chosen = [run.validations[index] for index in evenly(len(run.validations), MOST_ROWS).tolist()]
    left_out = len(run.validations) - len(chosen)
    rows = [
        [f"{entry.step:,}", f"{entry.tokens:,.0f}" if entry.tokens else UNKNOWN, entry.text, entry.bits_text or UNKNOWN]
        for entry in chosen
    ]
    return Table(
        caption=f"Validation losses of {run.label}",
        columns=["step", "tokens", "nats per token", "bits per byte"],
        rows=rows,
        numbers=(0, 1, 2, 3),
        note=f"{left_out:,} more are left out." if left_out else "",
    )


def scores_table(runs: Runs) -> Table:
    """The last value of every task score."""
    rows = []
    for run in runs:
        for score in run.scores:
            last = score.points[-1]
            items = f"{last.items:,}" if last.items else UNKNOWN
            rows.append([run.label, score.name, with_error(last.value, last.error), items, f"{last.step:,}"])
    left_out = len(rows) - MOST_ROWS
    return Table(
        caption="Task scores",
        columns=["run", "score", "last value", "items", "step"],
        rows=rows[:MOST_ROWS],
        numbers=(2, 3, 4),
        note=f"{left_out:,} more are left out." if left_out > 0 else "",
    )


def differences(runs: Runs) -> Table:
    """The settings, and the runtime that was decided from them, in which the runs differ."""
    rows = _side_by_side([_settings(run) | _runtime(run) for run in runs])
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return Table(
        caption="Differences between the runs", columns=["setting", *(run.label for run in runs)], rows=differing
    )


def settings_table(runs: Runs) -> Table:
    """Every setting of every run, with its meaning if there is one run."""
    rows = _side_by_side([_settings(run) for run in runs])
    if len(runs) > 1:
        return Table(caption="All settings", columns=["setting", *(run.label for run in runs)], rows=rows)
    rows = [[name, value, meanings().get(name, "")] for name, value in rows]
    return Table(caption="All settings", columns=["setting", "value", "meaning"], rows=rows)


def environments(runs: Runs) -> Table:
    """Machine, versions and command line of every run."""
    labels = [run.label for run in runs] if len(runs) > 1 else [""]
    return Table(caption="Environment", columns=["", *labels], rows=_side_by_side([_environment(run) for run in runs]))


def _side_by_side(columns: list[dict[str, str]]) -> list[list[str]]:
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, UNKNOWN) for column in columns)] for name in names]


def _settings(run: ReportedRun) -> dict[str, str]:
    return {name: _cell(value) for name, value in run.record.settings.items()}


def _cell(value: object) -> str:
    return one_line(str(value).lower() if isinstance(value, bool) else str(value), longest=200)


def _runtime(run: ReportedRun) -> dict[str, str]:
    """The part of the environment that can change the numbers of a run."""
    places = {"data": ("data", "fingerprint"), "commit": ("commit",), "torch": ("torch",), "processor": ("processor",)}
    places |= {
        name: ("runtime", name) for name in ("device", "dtype", "threads", "compile", "global_batch_size", "world_size")
    }
    texts = {f"{name} used": run.text(*place)[: 16 if name == "data" else None] for name, place in places.items()}
    return {name: text for name, text in texts.items() if text}


def _environment(run: ReportedRun) -> dict[str, str]:
    """environment.json with its tables flattened."""
    found: dict[str, str] = {}
    for name, value in list(run.record.environment.items())[:MOST_ROWS]:
        if isinstance(value, Mapping):
            inner = list(value.items())[:MOST_ROWS]
            found |= {one_line(f"{name}: {key}", longest=60): _cell(entry) for key, entry in inner}
        elif name == "command" and isinstance(value, list):
            found["command"] = one_line(shlex.join(map(str, value)), longest=400)
        else:
            found[one_line(str(name), longest=60)] = _cell(value)
    return found
