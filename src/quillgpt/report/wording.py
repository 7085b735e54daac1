"""Numbers and foreign text as a reader wants them: rounded to what is known, with units, nothing obeyed."""

import math
import unicodedata
from collections.abc import Sequence

LAYOUT = "\n\t"
JOINERS = "\u200c\u200d"  # parts of words and of emoji
LARGE = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def visible(text: str, *, longest: int = 0) -> str:
    """Text with escapes for what a terminal or a browser obeys, cut to the longest length where one is given."""
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
    """A number to so many significant digits: 0.0006 as 0.0006, 0.00003 as 3e-05, 1234.5 as 1,234."""
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
    """A count in words: 307,200 as it is, 1234567 as 1.23 million; with what is counted, if said."""
    text = f"{value:,.0f}"
    for size, name in LARGE:
        if value >= size:
            text = f"{value / size:.3g} {name}" if value < 1e15 else f"{value:.3g}"
            break
    return f"{text} {of if value != 1 else of.removesuffix('s')}" if of else text


def small_count(value: int, of: str) -> str:
    """A small count as a word: 3, runs: three runs."""
    word = NUMBER_WORDS[value] if 0 <= value < len(NUMBER_WORDS) else f"{value:,}"
    return f"{word} {of if value != 1 else of.removesuffix('s')}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8.1 seconds, 2 min 5 s, 3 h 20 min, 4 days 2 h."""
    if not math.isfinite(seconds) or seconds < 0:
        return "an unknown time"
    if seconds < 10:
        return f"{seconds:.1f} seconds"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} seconds"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
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


def compact(value: float) -> str:
    """A number for the tick of an axis: 200000 as 200k, 3e-4 as it is."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else ""
    for large, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= large:
            return f"{value / large:.4g}{letter}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
