"""The tables of a report: headline numbers, evaluations, scores, settings and what differs in them, environment."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quillgpt.config import meanings
from quillgpt.report.captions import Told
from quillgpt.report.curves import evenly
from quillgpt.report.facts import Facts
from quillgpt.report.subject import Subject
from quillgpt.report.wording import count, duration, number, one_line, size, with_error

MOST_ROWS = 60
UNKNOWN = "–"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under the names of their columns; the first cell of a row is its heading.

    `numbers` are the columns that hold numbers; `note` says what was left out.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    numbers: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One number large: its name, itself, its error, and in what unit or beside what."""

    name: str
    value: str
    error: str
    unit: str


def cards(subject: Subject, facts: Facts) -> list[Card]:
    """The numbers that a reader of one run wants first."""
    found = []
    last, best = facts.last, facts.best
    if last is not None:
        found.append(_card("Held-out loss", last.text, "nats per token"))
    if last is not None and best is not None and best is not last:
        found.append(_card("Best held-out loss", best.text, f"at step {best.step:,}"))
    if last is not None and last.bits_text:
        found.append(_card("Bits per byte", last.bits_text, _beside(subject, last.bits_per_byte)))
    if facts.last_loss is not None:
        found.append(_card("Training loss", f"{facts.last_loss:.3f}", "nats per token, smoothed"))
    if facts.tokens:
        found.append(_card("Tokens", count(facts.tokens), f"in {count(facts.step, 'steps')}"))
    if facts.seconds is not None:
        speed = f"{number(facts.tokens_per_second)} tokens/s" if facts.tokens_per_second else ""
        found.append(_card("Time", duration(facts.seconds), speed))
    return found


def _card(name: str, text: str, unit: str) -> Card:
    value, plus_minus, error = text.partition(" ± ")
    return Card(name=name, value=value, error=f"± {error}" if plus_minus else "", unit=unit)


def _beside(subject: Subject, bits: float | None) -> str:
    """A model's bits as a share of the first compressor's."""
    compressors = subject.compressors
    if not isinstance(compressors, dict) or not compressors or bits is None:
        return "of held-out text"
    name, value = next(iter(compressors.items()))
    return f"{bits / value:.2f} of {name}'s {value:.3f}"


def compressors_table(told: Told) -> Table:
    """Bits per byte of the models and of compressors on the same held-out text, the largest first."""
    compressors = common_compressors([subject for subject, _ in told])
    models = {subject.label: facts.last for subject, facts in told if facts.last and facts.last.bits_per_byte}
    entries = [(value, name, f"{value:.3f}") for name, value in compressors.items()]
    entries += [(last.bits_per_byte or 0.0, label, last.bits_text) for label, last in models.items()]
    rows = [
        [name, text, f"{value / next(iter(compressors.values())):.2f}"]
        for value, name, text in sorted(entries, reverse=True)
        if compressors and models
    ]
    first = next(iter(compressors), "")
    return Table(
        caption="The same held-out text, in bits per byte",
        columns=["", "bits per byte", f"of {first}'s"],
        rows=rows,
        numbers=(1, 2),
        note="A compressor knows nothing when it begins; a model, and a compressor said to know it, has read the "
        "training text.",
    )


def common_compressors(subjects: Sequence[Subject]) -> dict[str, float]:
    """The compressors' figures if all runs have the same, that is: were evaluated on the same text."""
    first, *others = [subject.compressors for subject in subjects]
    return first if isinstance(first, dict) and all(other == first for other in others) else {}


def headline(told: Told) -> Table:
    """The first numbers of every run, one row each."""
    names = ["run", "held-out loss", "best held-out loss", "bits per byte", "training loss", "tokens", "time"]
    rows = [[subject.label, *_headline(subject, facts)] for subject, facts in told]
    numbers = (1, 2, 3, 4, 5, 6)
    return Table(caption="Where the runs ended", columns=names, rows=rows, numbers=numbers)


def _headline(subject: Subject, facts: Facts) -> list[str]:
    last, best = facts.last, facts.best
    return [
        last.text if last else UNKNOWN,
        f"{best.text} at step {best.step:,}" if best and best is not last else (best.text if best else UNKNOWN),
        (last.bits_text if last else "") or UNKNOWN,
        f"{facts.last_loss:.3f}" if facts.last_loss is not None else UNKNOWN,
        count(facts.tokens),
        duration(facts.seconds) if facts.seconds is not None else UNKNOWN,
    ]


def overview(subject: Subject, facts: Facts) -> Table:
    """What was trained, on what, with what: the small table behind the sentence."""
    config, told = subject.record.config, subject.told
    model = config.model
    per_step = facts.tokens / facts.step if facts.step else 0
    fraction = f", {number(facts.epochs)} of the training text" if facts.epochs is not None else ""
    steps = f"{facts.step:,} of {facts.planned_steps:,}" if facts.planned_steps else f"{facts.step:,}"
    status = "" if facts.is_finished or not facts.planned_steps else ": still running, or stopped"
    rows = [
        ("model", _joined(count(facts.parameters, "parameters") if facts.parameters else "", _shape(subject))),
        ("block", ", ".join([f"{model.attention} attention", model.mlp, model.norm, f"{model.position} positions"])),
        ("data", _joined(told("data", "source") or config.data.source, told("data", "directory"))),
        ("licence", told("data", "licence")),
        ("training text", count(subject.amount("data", "train_tokens"), "tokens")),
        ("held-out text", count(subject.amount("data", "held_out_tokens"), "tokens")),
        ("tokenizer", _joined(told("data", "tokenizer") or config.data.tokenizer, _vocabulary(subject))),
        ("steps", f"{steps}{status}"),
        ("batch", count(round(per_step), "tokens") if per_step else ""),
        ("tokens seen", f"{count(facts.tokens)}{fraction}"),
        ("time", duration(facts.seconds) if facts.seconds is not None else ""),
        ("throughput", f"{number(facts.tokens_per_second)} tokens/s, median" if facts.tokens_per_second else ""),
        ("memory", f"{size(facts.memory_bytes)} at its largest" if facts.memory_bytes else ""),
        (
            "hardware",
            _joined(told("processor"), told("choices", "device"), told("choices", "dtype"), _threads(subject)),
        ),
    ]
    known = [[name, one_line(text, longest=240)] for name, text in rows if text and not text.startswith("0 tokens")]
    return Table(caption="What was trained", columns=["", ""], rows=known)


def _shape(subject: Subject) -> str:
    model = subject.record.config.model
    parts = [
        f"{model.n_layer} layers",
        f"{model.n_embd} wide",
        f"{model.n_head} heads",
        f"context {model.context_length:,}",
    ]
    return ", ".join(parts)


def _vocabulary(subject: Subject) -> str:
    size_of_vocabulary = subject.amount("data", "vocab_size")
    return f"{size_of_vocabulary:,} tokens" if size_of_vocabulary else ""


def _threads(subject: Subject) -> str:
    threads = subject.amount("choices", "threads")
    return count(threads, "threads") if threads and subject.told("choices", "device") == "cpu" else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def evaluations(subject: Subject, facts: Facts) -> Table:
    """Every held-out evaluation, or evenly chosen ones where they are many."""
    chosen = [facts.held_out[index] for index in evenly(len(facts.held_out), MOST_ROWS).tolist()]
    left_out = len(facts.held_out) - len(chosen)
    rows = [
        [f"{entry.step:,}", f"{entry.tokens:,.0f}" if entry.tokens else UNKNOWN, entry.text, entry.bits_text or UNKNOWN]
        for entry in chosen
    ]
    return Table(
        caption=f"Held-out evaluations of {subject.label}",
        columns=["step", "tokens", "nats per token", "bits per byte"],
        rows=rows,
        numbers=(0, 1, 2, 3),
        note=f"{left_out:,} more are left out." if left_out else "",
    )


def scores_table(told: Told) -> Table:
    """The last value of every task score."""
    rows = [
        [
            subject.label,
            score.name,
            with_error(last.value, last.error),
            f"{last.items:,}" if last.items else UNKNOWN,
            f"{last.step:,}",
        ]
        for subject, _ in told
        for score in subject.scores
        if (last := score.points[-1])
    ]
    left_out = len(rows) - MOST_ROWS
    return Table(
        caption="Task scores",
        columns=["run", "score", "last value", "items", "step"],
        rows=rows[:MOST_ROWS],
        numbers=(2, 3, 4),
        note=f"{left_out:,} more are left out." if left_out > 0 else "",
    )


def differences(subjects: Sequence[Subject]) -> Table:
    """The settings, and what was resolved from them, in which the runs differ."""
    columns = [{**_settings(subject), **_resolved(subject)} for subject in subjects]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, UNKNOWN) for column in columns)] for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    labels = [subject.label for subject in subjects]
    return Table(caption="What differs between the runs", columns=["setting", *labels], rows=differing)


def settings_table(subjects: Sequence[Subject]) -> Table:
    """Every setting of every run, with its meaning where there is one run."""
    columns = [_settings(subject) for subject in subjects]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    if len(subjects) > 1:
        return Table(caption="All settings", columns=["setting", *(subject.label for subject in subjects)], rows=rows)
    told = [[name, value, meanings().get(name, "")] for name, value in rows]
    return Table(caption="All settings", columns=["setting", "value", "meaning"], rows=told)


def environments(subjects: Sequence[Subject]) -> Table:
    """Machine, versions and command line of every run."""
    columns = [_environment(subject) for subject in subjects]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, UNKNOWN) for column in columns)] for name in names]
    labels = [subject.label for subject in subjects] if len(subjects) > 1 else [""]
    return Table(caption="Environment", columns=["", *labels], rows=rows)


def _settings(subject: Subject) -> dict[str, str]:
    return {name: one_line(_plain(value), longest=200) for name, value in subject.record.settings.items()}


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _resolved(subject: Subject) -> dict[str, str]:
    """What the runs were made with and on, as far as a difference in it matters to their numbers."""
    places = {"data": ("data", "fingerprint"), "commit": ("commit",), "torch": ("torch",), "processor": ("processor",)}
    choices = ("device", "dtype", "threads", "compile", "rows", "world_size")
    places = {f"{name} used": place for name, place in places.items()}
    places |= {f"{name} used": ("choices", name) for name in choices}
    return {
        name: text[:16] if name == "data used" else text
        for name, place in places.items()
        if (text := subject.told(*place))
    }


def _environment(subject: Subject) -> dict[str, str]:
    """environment.json, flat, but for what the small table has already."""
    found: dict[str, str] = {}
    for name, value in list(subject.record.environment.items())[:MOST_ROWS]:
        if isinstance(value, Mapping):
            inner = list(value.items())[:MOST_ROWS]
            found |= {
                one_line(f"{name}: {key}", longest=60): one_line(_plain(entry), longest=200) for key, entry in inner
            }
        elif name == "command" and isinstance(value, list):
            found["command"] = one_line(shlex.join(map(str, value)), longest=400)
        else:
            found[one_line(str(name), longest=60)] = one_line(_plain(value), longest=200)
    return found
