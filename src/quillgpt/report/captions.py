"""What a figure says in words: where each run ends, or the range of them where they are many."""

from collections.abc import Callable, Sequence

from quillgpt.report.facts import Facts
from quillgpt.report.subject import Subject
from quillgpt.report.wording import duration, listed, number, size

NAMED_RUNS = 4  # more runs than these are told by their range
Told = Sequence[tuple[Subject, Facts]]


def ends(told: Told, say: Callable[[Facts], str]) -> str:
    """A sentence with a number for each run; for many runs of the first and the last of them only."""
    said = [(subject.label, say(facts)) for subject, facts in told]
    said = [(label, text) for label, text in said if text]
    if not said:
        return ""
    if len(told) == 1:
        return f"{said[0][1][0].upper()}{said[0][1][1:]}."
    rest = len(said) - NAMED_RUNS
    text = "; ".join(f"{label}: {text}" for label, text in said[:NAMED_RUNS])
    return f"{text}; and {rest} more in the table." if rest > 0 else f"{text}."


def final_loss(facts: Facts) -> str:
    """Training loss and held-out loss at the end."""
    parts = []
    if facts.last_loss is not None:
        parts.append(f"training {number(facts.last_loss, 4)}")
    if facts.last is not None:
        parts.append(f"held out {facts.last.text}")
    return ", ".join(parts)


def final_bits(facts: Facts) -> str:
    """Bits per byte at the end."""
    return f"{facts.last.bits_text} at the end" if facts.last and facts.last.bits_text else ""


def time(facts: Facts) -> str:
    """How long the steps took."""
    return f"{duration(facts.seconds)} of training" if facts.seconds is not None else ""


def rates(facts: Facts) -> str:
    """The highest and the last learning rate."""
    if facts.highest_rate is None or facts.last_rate is None:
        return ""
    return f"at most {number(facts.highest_rate)}, {number(facts.last_rate)} at the end"


def norms(facts: Facts) -> str:
    """The usual gradient norm, and how often it was clipped."""
    if facts.median_norm is None:
        return ""
    text = f"median {number(facts.median_norm)}"
    if facts.clipped_share is None:
        return f"{text}, not clipped"
    return f"{text}, clipped on {facts.clipped_share:.0%} of the logged steps"


def speed(facts: Facts) -> str:
    """The median throughput."""
    return f"median {number(facts.tokens_per_second)} tokens/s" if facts.tokens_per_second is not None else ""


def memory(facts: Facts) -> str:
    """The memory at its largest."""
    return f"{size(facts.memory_bytes)} at its largest" if facts.memory_bytes is not None else ""


def skipped(facts: Facts) -> str:
    """Steps that were not applied, and losses that were no numbers."""
    parts = []
    if facts.skipped:
        parts.append(f"{facts.skipped:,} logged updates not applied")
    if facts.not_finite:
        parts.append(f"{facts.not_finite:,} logged losses that are no numbers")
    return listed(parts)
