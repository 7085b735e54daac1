"""Numbers and foreign text for a reader, and the sentences of a report: what was trained, and with what result."""

import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quillgpt.model.attention import ATTENTION

if TYPE_CHECKING:
    from quillgpt.lab.report.runs import ReportedRun

SOFTMAX = {name for name, entry in ATTENTION.items() if entry.is_softmax}
LAYOUT = "\n\t"
JOINERS = "\u200c\u200d"  # parts of words and of emoji
LARGE = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SOURCES = {
    "python": "Python's standard library",
    "text": "a folder of text",
    "jsonl": "texts in JSON lines",
    "parquet": "texts in Parquet files",
    "shakespeare": "Shakespeare's works",
    "openwebtext": "OpenWebText",
    "fineweb-edu": "FineWeb-Edu",
    "nanogpt": "a prepared nanoGPT folder",
}
TOKENIZERS = {
    "gpt2": "tokenized by GPT-2's tokenizer",
    "bpe": "tokenized by its own byte-pair encoding",
    "byte": "tokenized into bytes",
    "character": "tokenized into characters",
}


def visible(text: str, *, longest: int = 0) -> str:
    """Text with control characters as escapes, cut to the longest length if one is given."""
    if longest and len(text) > longest:
        text = text[: longest - 1] + "…"
    return "".join(x if _is_shown(x) else x.encode("unicode_escape").decode() for x in text)


def one_line(text: str, *, longest: int = 0) -> str:
    """The same on one line."""
    return visible(text, longest=longest).replace("\n", "\\n").replace("\t", "\\t")


def _is_shown(character: str) -> bool:
    if character.isprintable() or character in LAYOUT or character in JOINERS:
        return True
    return unicodedata.category(character) == "Zs"  # wide and narrow spaces


def number(value: float, digits: int = 3) -> str:
    """A number to that many significant digits: 0.0006 as 0.0006, 0.00003 as 3e-05, 1234.5 as 1,234."""
    if not math.isfinite(value):
        return {"inf": "∞", "-inf": "−∞"}.get(str(value), "not a number")
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.{digits - 1}e}"
    return f"{value:.{digits}g}"


def with_error(value: float, error: float | None) -> str:
    """A value and its standard error, to two digits of the error: 2.4132, 0.0123 as 2.413 ± 0.012."""
    if not math.isfinite(value):
        return number(value)
    if error is None or not math.isfinite(error) or error <= 0:
        return number(value, 4)
    places = min(6, max(1, 1 - math.floor(math.log10(error))))
    return f"{value:.{places}f} ± {error:.{places}f}"


def count(value: float, of: str = "") -> str:
    """A count, large ones in words: 307,200 as it is, 1234567 as 1.23 million; `of` is the plural of the noun."""
    text = f"{value:,.0f}"
    for size, name in LARGE:
        if value >= size:
            text = f"{value / size:.3g} {name}" if value < 1e15 else f"{value:.3g}"
            break
    return f"{text} {of if value != 1 else of.removesuffix('s')}" if of else text


def small_count(value: int, of: str) -> str:
    """A small count as a word: 3, runs as three runs."""
    word = NUMBER_WORDS[value] if 0 <= value < len(NUMBER_WORDS) else f"{value:,}"
    return f"{word} {of if value != 1 else of.removesuffix('s')}"


def duration(seconds: float) -> str:
    """A time in two units: 8.1 seconds, 2 min 5 s, 3 h 20 min, 4 days 2 h."""
    if not math.isfinite(seconds) or seconds < 0:
        return "an unknown time"
    if seconds < 10:
        return f"{seconds:.1f} seconds"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} seconds"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} days {hours % 24} h"


def size(number_of_bytes: float) -> str:
    """A size in bytes with the unit that fits: 386 MB."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if number_of_bytes >= 10**power:
            return f"{number_of_bytes / 10**power:.3g} {unit}"
    return f"{number_of_bytes:.0f} B"


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def trained(run: "ReportedRun") -> str:
    """What was trained, on what, and for how long."""
    what, _, on = _model_and_text(run).partition(" on ")
    return f"A GPT {what} was trained on {on}, {_how_long(run)}."


def _model_and_text(run: "ReportedRun") -> str:
    config = run.record.config
    parameters = f"of {count(run.parameters, 'parameters')} " if run.parameters else ""
    attention = one_line(config.model.attention, longest=40)
    kind = "" if attention in SOFTMAX else f" with {attention} attention"
    shape = f"({count(config.model.n_layer, 'layers')}, {config.model.n_embd} wide{kind})"
    start = ""
    if config.train.init != "scratch":
        adapters = f", through adapters of rank {config.lora.lora_rank}," if config.lora.lora_rank else ","
        start = f", starting from the weights of {one_line(config.train.init, longest=60)}{adapters}"
    source = run.text("data", "source") or one_line(config.data.source, longest=60)
    tokenizer = run.text("data", "tokenizer") or one_line(config.data.tokenizer, longest=60)
    tokenized = TOKENIZERS.get(tokenizer, f"tokenized by {tokenizer}")
    return f"{parameters}{shape}{start} on {SOURCES.get(source, source)}, {tokenized}"


def _how_long(run: "ReportedRun") -> str:
    """The steps, the tokens, the passes over the text, the time and the machine."""
    if not run.step:
        return "but no step is recorded yet"
    if run.is_finished or not run.planned_steps:
        steps = f"for {count(run.step, 'steps')}"
    else:
        steps = f"for {run.step:,} of {run.planned_steps:,} steps so far"
    passes = ""
    if run.epochs is not None and run.epochs < 0.995:
        passes = f", {number(100 * run.epochs, 2)} % of the training text"
    elif run.epochs is not None:
        passes = ", the training text " + ("once" if run.epochs < 1.05 else f"{run.epochs:.1f} times")
    time = f", in {duration(run.seconds)}" if run.seconds is not None else ""
    return f"{steps} ({count(run.tokens, 'tokens')}{passes}){time}{_machine(run)}"


def _machine(run: "ReportedRun") -> str:
    device, ranks = run.text("runtime", "device"), run.count("runtime", "world_size")
    if not device:
        return ""
    if device == "cpu":
        threads = small_count(run.count("runtime", "threads"), "threads")
        device = f"{threads} of {run.text('processor') or 'a CPU'}"
    return f" on {device}" + (f" on each of {ranks} ranks" if ranks > 1 else "")


def result(run: "ReportedRun") -> str:
    """The validation loss at the end, compared with gzip if that was measured, and what went wrong."""
    first, last, best = run.first, run.last, run.best
    if last is None or first is None or best is None:
        text = "It was not evaluated on validation data."
        if run.first_loss is not None and run.last_loss is not None:
            text += f" The training loss went from {run.first_loss:.3f} to {run.last_loss:.3f} nats per token."
    else:
        began = f"went from {first.loss:.3f} to" if len(run.validations) > 1 else "is"
        bits = f", {last.bits_text} bits per byte" if last.bits_text else ""
        if isinstance(run.compressors, dict) and run.compressors and bits:
            name, value = next(iter(run.compressors.items()))
            bits += f", where {name} needs {value:.3f}"
        text = f"The validation loss {began} {last.text} nats per token{bits}."
        if best.step != last.step and best.text != last.text:
            text += f" The best was {best.text}, at step {best.step:,}."
    trouble = trouble_of(run)
    return f"{text} During training: {trouble}." if trouble else text


def trouble_of(run: "ReportedRun") -> str:
    """How many updates were not applied and how many losses were not finite; empty if none."""
    parts = [f"{run.skipped:,} logged updates not applied"] if run.skipped else []
    parts += [f"{run.not_finite:,} logged losses not finite"] if run.not_finite else []
    return listed(parts)


def summary(runs: Sequence["ReportedRun"], differing: list[str]) -> str:
    """What several runs have in common, in what settings they differ, and the lowest validation loss."""
    words = {_model_and_text(run) for run in runs}
    common = f"of a GPT {next(iter(words))}" if len(words) == 1 else "of different models or on different data"
    total = f"{count(sum(run.tokens for run in runs), 'tokens')} in {duration(sum(run.seconds or 0 for run in runs))}"
    text = f"{small_count(len(runs), 'runs').capitalize()} {common}: together {total} of training."
    if len(differing) > 5:
        text += f" They differ in {', '.join(differing[:5])} and {len(differing) - 5} more settings."
    elif differing:
        text += f" They differ in {listed(differing)}."
    ended = [(run.last.loss, run.label, run.last.text) for run in runs if run.last]
    if ended:
        text += f" The lowest validation loss at the end: {min(ended)[1]}, {min(ended)[2]} nats per token."
    return text


def comparison(runs: Sequence["ReportedRun"]) -> list[str]:
    """What to know before comparing the runs' numbers; for one run, why gzip is missing."""
    if len(runs) == 1:
        reason = runs[0].compressors
        return [f"Not compared with gzip and xz: {reason}."] if isinstance(reason, str) else []
    notes = []
    unknown = [run.label for run in runs if not run.text("data", "fingerprint")]
    if len({run.record.data_fingerprint for run in runs if run.text("data", "fingerprint")}) > 1:
        notes.append(
            "The runs were not trained and evaluated on the same data: their losses in nats per token do not compare; "
            "bits per byte compare if the validation text is the same and only the tokenizer differs."
        )
    if unknown:
        notes.append(f"The data of {listed(unknown)} is not recorded: the losses may not compare.")
    notes.append(
        "A run has the same colour and marker in every figure. Use `quill compare` to see whether a difference between "
        "runs is more than the noise of the seed."
    )
    return notes
