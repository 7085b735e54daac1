"""Errors that the user can fix: each has a documented exit code, and a misspelt name is answered with the nearest."""

import re

import pytest

from quillgpt import errors
from quillgpt.errors import EXIT_CODES, ConfigError, QuillError, import_optional, nearest, pick, shown

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QuillError)]


def test_every_error_has_a_documented_exit_code_and_every_code_an_error() -> None:
    assert {kind.exit_code for kind in KINDS} == set(EXIT_CODES) - {0}


def test_nearest_finds_a_misspelt_name() -> None:
    for name, meant in {
        "layernrom": "layernorm",
        "LAYERNORM": "layernorm",
        "layer-norm": "layernorm",
        "rms_norm_2": "rms-norm-2",
        "zebra": "",
        "": "",
        "layernorm" * 10**5: "",
    }.items():
        expected = f" (did you mean {meant}?)" if meant else ""
        assert nearest(name, ["layernorm", "rmsnorm", "rms-norm-2"]) == expected


def test_pick_returns_the_entry_or_names_setting_value_nearest_and_all_entries() -> None:
    assert pick({"a": 1, "b": 2}, "b", "letter") == 2
    message = "invalid schedule: 'cosin' (did you mean cosine?); choose one of: cosine, linear"
    with pytest.raises(ConfigError, match=rf"^{re.escape(message)}$"):
        pick({"cosine": 1, "linear": 2}, "cosin", "schedule")


def test_any_value_is_shown_as_part_of_a_line() -> None:
    for value, text in (
        (1.5, "1.5"),
        (True, "True"),
        ("two\nlines\x1b[31m", "'two\\nlines\\x1b[31m'"),
        (10**5000, "a number of 16,610 bits"),
        ("x" * 10**6, "'" + "x" * 76 + "..."),
        ([[1] * 10**4], "[[" + "1, " * 25 + "..."),
    ):
        assert shown(value) == text


def test_a_missing_optional_package_is_answered_with_its_extra() -> None:
    assert import_optional("json.decoder", extra="x").__name__ == "json.decoder"
    with pytest.raises(ConfigError, match=r"^nowhere is not installed: pip install 'quillgpt\[lab\]'$"):
        import_optional("nowhere.at.all", extra="lab")
