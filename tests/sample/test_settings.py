"""The table of limits: every value beyond them is one line that names the setting."""

from pathlib import Path

import pytest

from quillgpt.errors import ConfigError
from quillgpt.sample.settings import LIMITS, SamplingSettings

BEYOND = [
    *(("temperature", value) for value in (-1, -1e-30, 2.0001, 1e30, 10**400, "nan", "inf", "-inf", "0.5", True, None)),
    *(("top_k", value) for value in (-1, -(10**30), 1.0, "5", True, None)),
    *(("top_p", value) for value in (0, 0.0, -0.1, 1.0001, "nan", "inf", True, "0.5")),
    *(("max_new_tokens", value) for value in (0, -1, 100_001, 10**30, 1.5, True)),
    *(("num_samples", value) for value in (0, -1, 1_001, 10**30, 2.0, True)),
    *(("seed", value) for value in (-1, 2**63, 0.5, True)),
    *(("stop", value) for value in (("",), ("a", ""), ("x" * 1001,), ("\ud800",), ("a",) * 17, ["a"], "a", (1,))),
]
WITHIN = [
    *(("temperature", value) for value in (0, 0.0, 5e-324, 1e-30, 1, 2, 2.0)),
    *(("top_k", value) for value in (0, 1, 50_257, 10**30)),
    *(("top_p", value) for value in (5e-324, 0.5, 1, 1.0)),
    *(("max_new_tokens", value) for value in (1, 100_000)),
    *(("num_samples", value) for value in (1, 1_000)),
    *(("seed", value) for value in (0, 2**63 - 1)),
    *(("stop", value) for value in ((), ("a",) * 16, ("x" * 1000,), ("\n", "é"))),
]


def refusal(name, value) -> str:
    with pytest.raises(ConfigError) as caught:
        SamplingSettings(**{name: float(value) if value in ("nan", "inf", "-inf") else value})
    return str(caught.value)


def test_an_invalid_value_is_one_line_with_the_limit():
    messages = {f"{name}={value!r}"[:60]: (name, refusal(name, value)) for name, value in BEYOND}
    wrong = {
        case: message
        for case, (name, message) in messages.items()
        if not message.startswith(f"invalid {name}: ")
        or not message.endswith(f"(must be {LIMITS[name]})")
        or not message.isprintable()
        or len(message) >= 200
    }
    assert wrong == {}


def test_values_at_their_limits_are_valid():
    for name, value in WITHIN:
        assert getattr(SamplingSettings(**{name: value}), name) == value


def test_the_table_in_the_documentation_has_every_limit():
    text = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
    assert [name for name, limit in LIMITS.items() if f"| `{name}` | {limit} |" not in text] == []
