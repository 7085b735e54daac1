"""The settings: each has one name, a meaning and a default that works; each impossible value is one line."""

import ast
import functools
import math
import re
from pathlib import Path

import pytest

from quillgpt.config import GROUPS, RunConfig, Scalar, flatten, group_of, meanings, updated
from quillgpt.data.sources import SOURCES
from quillgpt.errors import ConfigError
from quillgpt.model.attention import ATTENTION
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.model.positions import POSITIONS
from quillgpt.optim import OPTIMIZERS
from quillgpt.optim.schedules import SCHEDULES
from quillgpt.tokenizer import TOKENIZERS
from quillgpt.train.track import TRACKERS
from settings_page import PAGE, page

PACKAGE = Path(__file__).parents[1] / "src" / "quillgpt"
DEFAULTS = flatten(RunConfig())
SETTINGS = sorted(DEFAULTS)
HUGE, LARGEST_INT = 10**5000, 2**63 - 1

COUNTS_FROM_1 = ("n_layer", "n_head", "n_embd", "context_length", "vocab_size", "eval_tokens", "log_every", "keep_last")
COUNTS_FROM_0 = (
    *("documents", "warmup_steps", "decay_steps", "steps", "batch_tokens", "batch_size", "gradient_accumulation_steps"),
    *("seed", "eval_every", "eval_iters", "save_every", "sample_every", "threads"),
)
SHARES = ("dropout", "beta1", "beta2")
RATES = ("lr", "min_lr", "weight_decay", "gradient_clip", "minutes")
STRINGS = [name for name in SETTINGS if isinstance(DEFAULTS[name], str)]
CHOICES = ("errors", "dtype", "compile", "float32_matmul_precision", "dist_backend")

IMPOSSIBLE: list[tuple[str, object]] = [
    *((name, value) for name in COUNTS_FROM_1 for value in (0, -1, 2**63, -HUGE, HUGE)),
    *((name, value) for name in COUNTS_FROM_0 for value in (-1, 2**63, -HUGE, HUGE)),
    *((name, value) for name in SHARES for value in (-0.1, 1, 1.0, 2, math.nan, math.inf, -math.inf, HUGE)),
    *((name, value) for name in RATES for value in (-1, -1e-30, math.nan, math.inf, -math.inf, 1e999, HUGE)),
    *(("eps", value) for value in (0, 0.0, -1e-8, 1, 1.0, math.nan, math.inf)),
    *(("decay_fraction", value) for value in (0, 0.0, -0.2, 1.01, math.nan, math.inf)),
    *(("dist_timeout_seconds", value) for value in (0, -1, 10**6 + 1, HUGE)),
    *((name, value) for name in STRINGS for value in ("a\0b", "\ud800")),
    *((name, "") for name in STRINGS if name not in ("path", "eval_tasks", "batch_ramp")),
    *((name, value) for name in CHOICES for value in ("best", "AUTO", " auto", "x" * 10**6)),
    ("n_layer", 1001),
    ("n_head", 5),  # does not divide 768
    ("n_embd", 769),
    ("n_embd", (1 << 20) + 12),
    ("context_length", (1 << 24) + 1),
    ("vocab_size", (1 << 32) + 1),
    ("batch_tokens", 1023),  # no multiple of context_length = 1024
    ("batch_tokens", 1025),
    ("min_lr", 7e-4),  # above lr = 6e-4
    ("lr", 5e-5),  # below min_lr = 6e-5
    ("minutes", 1e6 + 1),
    ("threads", 1025),
]
POSSIBLE: list[tuple[str, object]] = [
    *((name, 1) for name in COUNTS_FROM_1 if name != "n_embd"),
    *((name, 0) for name in COUNTS_FROM_0),
    *((name, 0) for name in (*SHARES, "min_lr", "weight_decay", "gradient_clip", "minutes")),
    *((name, 0.5) for name in ("dropout", "beta1", "beta2", "eps", "decay_fraction", "lr", "weight_decay", "minutes")),
    *(("seed", value) for value in (LARGEST_INT, 1)),
    *(("eps", value) for value in (5e-324, 1e-8)),
    *(("steps", value) for value in (1, LARGEST_INT)),
    *(("batch_tokens", value) for value in (1024, 491_520)),
    *(("compile", value) for value in ("auto", "on", "off", True, False)),
    ("decay_fraction", 1),
    ("n_head", 768),
    ("path", ""),
    ("eval_tasks", ""),
    ("batch_ramp", ""),
    ("batch_ramp", "1@0"),
    ("batch_ramp", "0.25@0,1@0.5"),
    ("out", "a folder/ünïcödé 🙂\n"),
]
NAMED_INSTEAD = {"n_embd": "n_head", "lr": "min_lr"}
"""the rule between two settings is told at one of them"""


def shortened(value: object) -> str:
    return repr(value)[:20] if not isinstance(value, int) or abs(value) < 2**64 else "huge"


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE, ids=shortened)
def test_an_impossible_value_is_one_line_that_names_the_setting(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        updated(RunConfig(), {name: value}, where="my.toml")
    message = str(caught.value)
    assert message.startswith("my.toml: ")
    assert name in message or NAMED_INSTEAD[name] in message
    assert message.isprintable()
    assert len(message) < 250


@pytest.mark.parametrize(("name", "value"), POSSIBLE, ids=shortened)
def test_a_value_at_its_limit_is_taken(name: str, value: Scalar) -> None:
    expected = {True: "on", False: "off"}[value] if name == "compile" and isinstance(value, bool) else value
    assert flatten(updated(RunConfig(), {name: value}, where="test"))[name] == expected


@pytest.mark.parametrize(
    "value",
    [None, True, 1, 1.5, "text", b"bytes", [1], {}, (), object(), 1 + 2j],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_value_of_another_type_is_refused_also_from_python(name: str, value: object) -> None:
    wanted = type(DEFAULTS[name])
    if type(value) is wanted or (wanted is float and type(value) is int):
        return
    with pytest.raises(ConfigError, match=rf"^{name} = .* is not (a whole number|a number|a string|true or false)$"):
        GROUPS[group_of()[name]](**{name: value})


def test_every_name_is_unique() -> None:
    assert len(group_of()) == sum(len(vars(group())) for group in GROUPS.values())


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_meaning_of_one_line(name: str) -> None:
    meaning = meanings()[name]
    assert meaning.isprintable()
    assert 10 <= len(meaning) <= 110
    assert not meaning.endswith(".")


def test_there_is_no_meaning_without_a_setting() -> None:
    assert meanings().keys() == DEFAULTS.keys()


def test_the_defaults_of_the_model_are_gpt2() -> None:
    model = RunConfig().model
    assert (model.n_layer, model.n_head, model.n_embd, model.context_length, model.vocab_size, model.bias) == (
        *(12, 12, 768, 1024, 50257),
        True,
    )


@functools.cache
def attributes_read() -> set[str]:
    """Every attribute that the package reads outside config/."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py") if path.parent.name != "config"]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_read_somewhere(name: str) -> None:
    assert name in attributes_read()


MENUS = {
    "attention": ATTENTION,
    "mlp": MLPS,
    "norm": NORMS,
    "position": POSITIONS,
    "source": SOURCES,
    "tokenizer": TOKENIZERS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "track": TRACKERS,
}


FAMILIES = {"gaussian-poly-": "gaussian-poly-N", "pointwise-": "pointwise-ACT"}


@pytest.mark.parametrize(("name", "entry"), [(name, entry) for name, menu in MENUS.items() for entry in menu])
def test_a_meaning_names_every_entry_of_its_menu(name: str, entry: str) -> None:
    family = next((family for beginning, family in FAMILIES.items() if entry.startswith(beginning)), entry)
    assert re.search(rf"\b{family}\b(?!-)", meanings()[name])


@pytest.mark.parametrize("name", [name for name in MENUS if name != "track"])
def test_the_default_is_an_entry_of_its_menu(name: str) -> None:
    assert DEFAULTS[name] in MENUS[name]


@pytest.mark.parametrize(
    ("wrong", "right"), [("n_layers", "n_layer"), ("n-layer", "n_layer"), ("Steps", "steps"), ("learning", "")]
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=rf"^here: unknown setting '{wrong}'.*{right}") as caught:
        updated(RunConfig(), {wrong: 1}, where="here")
    assert ("did you mean" in str(caught.value)) == bool(right)


def test_rotary_positions_need_an_even_head() -> None:
    with pytest.raises(ConfigError, match=r"n_head = 4 .* rotary"):
        updated(RunConfig(), {"n_embd": 36, "n_head": 4, "position": "rotary"}, where="test")


def test_the_global_batch_is_stated_once() -> None:
    with pytest.raises(ConfigError, match=r"batch_tokens = 1024 .* 0, because gradient_accumulation_steps sets the"):
        updated(RunConfig(), {"batch_tokens": 1024, "gradient_accumulation_steps": 2}, where="test")


def test_a_change_leaves_the_other_settings_and_the_original_alone() -> None:
    before = RunConfig()
    after = updated(before, {"n_layer": 3, "lr": 1, "device": "cpu"}, where="test")
    changed = {name for name, value in flatten(after).items() if value != DEFAULTS[name]}
    assert changed == {"n_layer", "lr", "device"}
    assert before == RunConfig()


def test_the_page_of_settings_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tests/settings_page.py`"
