"""Numbers and foreign text as a reader sees them."""

from quillgpt.data.sources import SOURCES
from quillgpt.lab.report import text
from quillgpt.lab.report.text import count, duration, listed, number, one_line, size, visible, with_error
from quillgpt.tokenizer import TOKENIZERS

NAN = float("nan")


def test_a_value_has_the_digits_of_its_error() -> None:
    known = [
        ((2.41321, 0.0123), "2.413 ± 0.012"),
        ((2.41321, 0.3), "2.41 ± 0.30"),
        ((12.5, 1.25), "12.5 ± 1.2"),
        ((2.41321, 0.0), "2.413"),
        ((2.41321, None), "2.413"),
        ((2.41321, NAN), "2.413"),
        ((NAN, 0.1), "not a number"),
        ((0.5, 1e-9), "0.500000 ± 0.000000"),
    ]
    assert [with_error(*pair) for pair, _ in known] == [expected for _, expected in known]


def test_durations_counts_and_sizes_have_units() -> None:
    known = {7.94: "7.9 seconds", 42.4: "42 seconds", 125: "2 min 5 s", 12_000: "3 h 20 min", 360_000: "4 days 4 h"}
    assert {seconds: duration(seconds) for seconds in known} == known
    assert duration(NAN) == "an unknown time"
    assert count(307_200, "tokens") == "307,200 tokens"
    assert count(1_234_567) == "1.23 million"
    assert count(1, "steps") == "1 step"
    assert size(385_859_584) == "386 MB"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a"]) == "a"
    assert number(float("inf")) == "∞"


def test_control_characters_are_escaped_and_text_of_any_script_stays() -> None:
    for character in ("\x1b", "\x00", "\x9b", "\u202e", "\u2066", "\ufeff", "\ud800", "\x7f", "\r"):
        shown = visible(f"a{character}b")
        assert character not in shown
        assert shown.encode().startswith(b"a\\")
    assert visible("naïve 日本 👩‍👩‍👧\n\tb") == "naïve 日本 👩‍👩‍👧\n\tb"
    assert one_line("a\nb\tc") == "a\\nb\\tc"
    assert len(visible("x" * 500, longest=60)) == 60


def test_every_source_and_tokenizer_of_the_menus_has_words() -> None:
    assert set(SOURCES) <= set(text.SOURCES)
    assert set(TOKENIZERS) <= set(text.TOKENIZERS)
