import pytest

from quillgpt.report.wording import compact, count, duration, listed, number, one_line, size, visible, with_error


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2.41321, 0.0123, "2.413 ± 0.012"),
        (2.41321, 0.3, "2.41 ± 0.30"),
        (12.5, 1.25, "12.5 ± 1.2"),
        (2.41321, 0.0, "2.413"),
        (2.41321, None, "2.413"),
        (2.41321, float("nan"), "2.413"),
        (float("nan"), 0.1, "not a number"),
        (0.5, 1e-9, "0.500000 ± 0.000000"),
    ],
)
def test_a_value_has_the_digits_of_its_error(value: float, error: float | None, text: str) -> None:
    assert with_error(value, error) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (7.94, "7.9 seconds"),
        (42.4, "42 seconds"),
        (125, "2 min 5 s"),
        (12_000, "3 h 20 min"),
        (360_000, "4 days 4 h"),
        (float("nan"), "an unknown time"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_and_sizes() -> None:
    assert count(307_200, "tokens") == "307,200 tokens"
    assert count(1_234_567) == "1.23 million"
    assert count(1, "steps") == "1 step"
    assert size(385_859_584) == "386 MB"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a"]) == "a"
    assert number(float("inf")) == "∞"


@pytest.mark.parametrize(
    ("value", "text"),
    [(200_000, "200k"), (0.0003, "3e-4"), (0.002, "0.002"), (2.5, "2.5"), (0, "0"), (9.83e9, "9.83B")],
)
def test_ticks(value: float, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize("character", ["\x1b", "\x00", "\x9b", "\u202e", "\u2066", "\ufeff", "\ud800", "\x7f", "\r"])
def test_what_a_terminal_or_a_browser_obeys_is_escaped(character: str) -> None:
    shown = visible(f"a{character}b")
    assert character not in shown
    assert shown.encode().startswith(b"a\\")


def test_text_of_any_script_stays_and_one_line_is_one() -> None:
    assert visible("naïve 日本 👩‍👩‍👧\n\tb") == "naïve 日本 👩‍👩‍👧\n\tb"
    assert one_line("a\nb\tc") == "a\\nb\\tc"
    assert len(visible("x" * 500, longest=60)) == 60
