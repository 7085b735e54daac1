"""What a person would say of a run: what was trained on what, for how long, and what came of it."""

from quillgpt.report.captions import Told, skipped
from quillgpt.report.facts import Facts
from quillgpt.report.subject import Subject
from quillgpt.report.wording import count, duration, listed, number, one_line, small_count

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
    "gpt2": "cut up by GPT-2's tokenizer",
    "bpe": "cut up by a byte-pair encoding of its own",
    "byte": "read byte by byte",
    "character": "read character by character",
}


def trained(subject: Subject, facts: Facts) -> str:
    """What was trained, on what, and for how long."""
    what, _, on = _what(subject, facts).partition(" on ")
    return f"A GPT {what} was trained on {on}, {_how_long(subject, facts)}."


def _what(subject: Subject, facts: Facts) -> str:
    """The model, where it began, and its text."""
    config = subject.record.config
    size = f"of {count(facts.parameters, 'parameters')} " if facts.parameters else ""
    attention = one_line(config.model.attention, longest=40)
    kind = "" if attention in ("softmax", "explicit") else f" with {attention} attention"
    shape = f"({count(config.model.n_layer, 'layers')}, {config.model.n_embd} wide{kind})"
    source = subject.told("data", "source") or one_line(config.data.source, longest=60)
    tokenizer = subject.told("data", "tokenizer") or one_line(config.data.tokenizer, longest=60)
    cut = TOKENIZERS.get(tokenizer, f"cut up by the tokenizer {tokenizer}")
    return f"{size}{shape}{_start(subject)} on {SOURCES.get(source, source)}, {cut}"


def _start(subject: Subject) -> str:
    config = subject.record.config
    if config.train.init == "scratch":
        return ""
    adapters = f", through adapters of rank {config.lora.lora_rank}," if config.lora.lora_rank else ","
    return f", starting from the weights of {one_line(config.train.init, longest=60)}{adapters}"


def _how_long(subject: Subject, facts: Facts) -> str:
    """The steps, the tokens, the passes over the text, the time and the machine."""
    if not facts.step:
        return "but no step is on record yet"
    planned = facts.planned_steps
    if facts.is_finished or not planned:
        steps = f"for {count(facts.step, 'steps')}"
    else:
        steps = f"for {facts.step:,} of {planned:,} steps so far"
    passes = f", {_passes(facts.epochs)}" if facts.epochs is not None else ""
    time = f", in {duration(facts.seconds)}" if facts.seconds is not None else ""
    return f"{steps} ({count(facts.tokens, 'tokens')}{passes}){time}{_machine(subject)}"


def _passes(epochs: float) -> str:
    """How much of the training text that is."""
    if epochs < 0.995:
        return f"{number(100 * epochs, 2)} % of the training text"
    return "the training text once" if epochs < 1.05 else f"the training text {epochs:.1f} times"


def _machine(subject: Subject) -> str:
    device, processor = subject.told("choices", "device"), subject.told("processor")
    if not device:
        return ""
    ranks = subject.amount("choices", "world_size")
    several = f" on each of {ranks} ranks" if ranks > 1 else ""
    if device != "cpu":
        return f" on {device}{several}"
    threads = subject.amount("choices", "threads")
    return f" on {small_count(threads, 'threads')} of {processor or 'a CPU'}{several}"


def became(subject: Subject, facts: Facts) -> str:
    """What came of it, beside compressors where they were measured."""
    first, last, best = facts.first, facts.last, facts.best
    if last is None or first is None or best is None:
        text = "It was not evaluated on held-out text."
        if facts.first_loss is not None and facts.last_loss is not None:
            text += f" The training loss went from {facts.first_loss:.3f} to {facts.last_loss:.3f} nats per token."
    else:
        began = f"went from {first.loss:.3f} to" if len(facts.held_out) > 1 else "is"
        bits = f", {last.bits_text} bits per byte" if last.bits_text else ""
        text = f"Held-out loss {began} {last.text} nats per token{bits}{_beside(subject, facts)}."
        if best.step != last.step and best.text != last.text:
            text += f" The best was {best.text}, at step {best.step:,}."
    trouble = skipped(facts)
    return f"{text} On the way: {trouble}." if trouble else text


def _beside(subject: Subject, facts: Facts) -> str:
    """The figure of gzip for the same text."""
    compressors, last = subject.compressors, facts.last
    if not isinstance(compressors, dict) or last is None or last.bits_per_byte is None or not compressors:
        return ""
    name, value = next(iter(compressors.items()))
    return f", where {name} needs {value:.3f}"


def read_together(told: Told, differing: list[str]) -> str:
    """What several runs are, in a few sentences: what they have in common, in what they differ, the least loss."""
    words = {_what(subject, facts) for subject, facts in told}
    runs = small_count(len(told), "runs").capitalize()
    common = (
        f"{runs} of a GPT {next(iter(words))}"
        if len(words) == 1
        else f"{runs} of different models or on different data"
    )
    tokens = sum(facts.tokens for _, facts in told)
    seconds = sum(facts.seconds or 0.0 for _, facts in told)
    more = f" and {len(differing) - 5} more settings" if len(differing) > 5 else ""
    difference = (
        f" They differ in {', '.join(differing[:5]) if more else listed(differing)}{more}." if differing else ""
    )
    ended = [(facts.last.loss, subject.label, facts.last.text) for subject, facts in told if facts.last]
    least = f" The least held-out loss at the end: {min(ended)[1]}, {min(ended)[2]} nats per token." if ended else ""
    return f"{common}: together {count(tokens, 'tokens')} in {duration(seconds)} of training.{difference}{least}"


def comparison(told: Told) -> list[str]:
    """What must be known before the runs' numbers are held side by side; for one run, why gzip is missing."""
    if len(told) == 1:
        reason = told[0][0].compressors
        return [f"Not compared with gzip and xz: {reason}."] if isinstance(reason, str) else []
    notes = []
    fingerprints = {subject.record.data_fingerprint for subject, _ in told if _has_data(subject)}
    unknown = [subject.label for subject, _ in told if not _has_data(subject)]
    if len(fingerprints) > 1:
        notes.append(
            "The runs were not trained and evaluated on the same data: their losses in nats per token do not compare; "
            "bits per byte compare where the held-out text is the same and only its tokens differ."
        )
    if unknown:
        notes.append(f"Which data {listed(unknown)} used is not on record; whether the losses compare is not known.")
    notes.append(
        "Colour and mark of a run are the same in every figure. Whether a difference between runs is more than the "
        "noise of the seed is what `quill compare` answers."
    )
    return notes


def _has_data(subject: Subject) -> bool:
    return bool(subject.told("data", "fingerprint"))
