"""Errors a user can mend: each has a documented exit code, and a misspelt name is told the nearest."""

import pytest

from quillgpt import errors
from quillgpt.errors import EXIT_CODES, ConfigError, QuillError, nearest, pick, shown

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QuillError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_documented_exit_code(kind: type[QuillError]) -> None:
    assert kind.exit_code in EXIT_CODES
    assert kind.exit_code != 0


def test_every_exit_code_but_done_belongs_to_an_error() -> None:
    assert {kind.exit_code for kind in KINDS} == set(EXIT_CODES) - {0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layernrom", " (did you mean layernorm?)"),
        ("LAYERNORM", " (did you mean layernorm?)"),
        ("layer-norm", " (did you mean layernorm?)"),
        ("rms_norm_2", " (did you mean rms-norm-2?)"),
        ("zebra", ""),
        ("", ""),
        ("layernorm" * 10**5, ""),
    ],
    ids=lambda text: text[:20],
)
def test_the_nearest_name_is_told_where_there_is_one(name: str, expected: str) -> None:
    assert nearest(name, ["layernorm", "rmsnorm", "rms-norm-2"]) == expected


def test_pick_returns_the_entry_of_the_menu() -> None:
    assert pick({"a": 1, "b": 2}, "b", "letter") == 2


def test_pick_names_setting_value_nearest_and_all_entries() -> None:
    with pytest.raises(ConfigError) as caught:
        pick({"cosine": 1, "linear": 2}, "cosin", "schedule")
    assert str(caught.value) == (
        "schedule = 'cosin' does not exist (did you mean cosine?); choose one of: cosine, linear"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.5"),
        (True, "True"),
        ("two\nlines\x1b[31m", "'two\\nlines\\x1b[31m'"),
        (10**5000, "a number of 16,610 bits"),
        ("x" * 10**6, "'" + "x" * 76 + "..."),
        ([[1] * 10**4], "[[" + "1, " * 25 + "..."),
    ],
    ids=lambda value: str(type(value)),
)
def test_any_value_is_shown_on_part_of_a_line(value: object, text: str) -> None:
    assert shown(value) == text
