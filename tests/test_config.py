"""The settings: each has one name, a help text and a default; each impossible value is refused in one line."""

import ast
import math
import re
from pathlib import Path

import pytest

from quillgpt.config import GROUPS, RunConfig, flatten, group_of, meanings, merged_plan, updated
from quillgpt.data.sources import SOURCES
from quillgpt.errors import ConfigError
from quillgpt.model.attention import ATTENTION
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.model.positions import POSITIONS
from quillgpt.optim import OPTIMIZERS
from quillgpt.optim.schedules import SCHEDULES
from quillgpt.tokenizer import TOKENIZERS
from quillgpt.training.track import TRACKERS
from settings_page import PAGE, page

PACKAGE = Path(__file__).parents[1] / "src" / "quillgpt"
DEFAULTS = flatten(RunConfig())
HUGE, MAX_INT = 10**5000, 2**63 - 1
NOT_FINITE = (math.nan, math.inf, -math.inf)

FROM_1 = ("n_layer", "n_head", "n_embd", "context_length", "vocab_size", "eval_tokens", "log_every", "keep_last")
FROM_0 = (
    *("documents", "warmup_steps", "decay_steps", "momentum_warmup_steps", "steps", "batch_tokens", "batch_size"),
    *("gradient_accumulation_steps", "seed", "eval_every", "eval_iters", "save_every", "sample_every", "threads"),
)
FRACTIONS = ("dropout", "beta1", "beta2", "momentum")
RATES = ("lr", "min_lr", "embedding_lr", "head_lr", "scalar_lr", "weight_decay", "gradient_clip", "minutes")
TEXTS = [name for name, value in DEFAULTS.items() if isinstance(value, str)]
MAY_BE_EMPTY = ("path", "eval_tasks", "batch_ramp")

IMPOSSIBLE: list[tuple[str, object]] = [
    *((name, value) for name in FROM_1 for value in (0, -1, MAX_INT + 1, -HUGE, HUGE)),
    *((name, value) for name in FROM_0 for value in (-1, MAX_INT + 1, -HUGE, HUGE)),
    *((name, value) for name in FRACTIONS for value in (-0.1, 1, 1.0, 2, *NOT_FINITE, HUGE)),
    *((name, value) for name in (*RATES, "stop_at_loss") for value in (-1, -1e-30, *NOT_FINITE, 1e999, HUGE)),
    *(("eps", value) for value in (0, 0.0, -1e-8, 1, 1.0, math.nan, math.inf)),
    *(("decay_fraction", value) for value in (0, 0.0, -0.2, 1.01, math.nan, math.inf)),
    *(("dist_timeout_seconds", value) for value in (0, -1, 10**6 + 1, HUGE)),
    *(("pointwise_length_power", value) for value in (-0.1, 2.1)),
    *(("logit_softcap", value) for value in (-0.1, 10_001.0)),
    *(("lora_alpha", value) for value in (0.0, -1.0, 1e6 + 1)),
    *(("lora_rank", value) for value in (-1, 8, (1 << 20) + 1)),  # 8 without weights to adapt
    *((name, value) for name in TEXTS for value in ("a\0b", "\ud800")),
    *((name, "") for name in TEXTS if name not in MAY_BE_EMPTY),
    *(
        (name, value)
        for name in ("errors", "dtype", "compile", "float32_matmul_precision", "dist_backend")
        for value in ("best", "AUTO", " auto", "x" * 10**6)
    ),
    ("n_layer", 1001),
    ("n_head", 5),  # does not divide 768
    ("n_embd", 769),
    ("n_embd", (1 << 20) + 12),
    ("context_length", (1 << 24) + 1),
    ("vocab_size", (1 << 32) + 1),
    ("batch_tokens", 1023),  # not a multiple of context_length = 1024
    ("min_lr", 7e-4),  # above lr = 6e-4
    ("lr", 5e-5),  # below min_lr = 6e-5
    ("minutes", 1e6 + 1),
    ("threads", 1025),
]
REPORTED_AS = {"n_embd": "n_head", "lr": "min_lr"}
"""a condition on two settings is reported with one of them"""
POSSIBLE: list[tuple[str, object]] = [
    *((name, 1) for name in FROM_1 if name != "n_embd"),
    *((name, 0) for name in (*FROM_0, *FRACTIONS, *RATES[1:], "stop_at_loss", "lora_rank", "pointwise_length_power")),
    *((name, 0.5) for name in (*FRACTIONS, "eps", "decay_fraction", "lr", "weight_decay", "minutes")),
    *(("seed", value) for value in (MAX_INT, 1)),
    *(("eps", value) for value in (5e-324, 1e-8)),
    *(("steps", value) for value in (1, MAX_INT)),
    *(("batch_tokens", value) for value in (1024, 491_520)),
    *(("compile", value) for value in ("auto", "on", "off")),
    *((name, "") for name in MAY_BE_EMPTY),
    *(("batch_ramp", value) for value in ("1@0", "0.25@0,1@0.5")),
    *(
        ("lora_alpha", 1e6),
        ("pointwise_length_power", 2.0),
        ("logit_softcap", 1e4),
        ("minutes", 1e6),
        ("threads", 1024),
    ),
    ("decay_fraction", 1),
    ("n_head", 768),
    ("out", "a folder/ünïcödé 🙂\n"),
]


def refusal(name: str, value: object) -> str:
    """The message with which a value is refused, or an empty string."""
    try:
        updated(RunConfig(), {name: value}, where="my.toml")
    except ConfigError as error:
        return str(error)
    return ""


def test_an_impossible_value_is_refused_in_one_line_that_names_the_setting() -> None:
    wrong = []
    for name, value in IMPOSSIBLE:
        message = refusal(name, value)
        named = f"my.toml: invalid {name}: " in message or f"invalid {REPORTED_AS.get(name)}: " in message
        if not (named and message.isprintable() and len(message) < 250):
            wrong.append((name, repr(value)[:30] if abs(getattr(value, "real", 0)) < HUGE else "huge", message))
    assert not wrong


def test_a_value_at_its_limit_is_accepted() -> None:
    wrong = [
        (name, value, refusal(name, value))
        for name, value in POSSIBLE
        if refusal(name, value) or flatten(updated(RunConfig(), {name: value}, where="test"))[name] != value
    ]
    assert not wrong
    for value, word in ((True, "on"), (False, "off")):
        assert updated(RunConfig(), {"compile": value}, where="test").train.compile == word


def test_a_value_of_another_type_is_refused_also_from_python() -> None:
    values = [None, True, 1, 1.5, "text", b"bytes", [1], {}, (), object(), 1 + 2j]
    pattern = r"^invalid {}: .* .must be (an integer|a number|a string|true or false).$"
    wrong = []
    for name, default in DEFAULTS.items():
        for value in values:
            if type(value) is type(default) or (type(default) is float and type(value) is int):
                continue
            try:
                GROUPS[group_of()[name]](**{name: value})
                wrong.append((name, value, "accepted"))
            except ConfigError as error:
                if not re.match(pattern.format(name), str(error)):
                    wrong.append((name, value, str(error)))
    assert not wrong


def test_every_setting_has_a_unique_name_and_a_help_text_of_one_line() -> None:
    assert len(group_of()) == sum(len(vars(group())) for group in GROUPS.values())
    assert meanings().keys() == DEFAULTS.keys()
    is_line = {
        name: 10 <= len(text) <= 110 and text.isprintable() and text[-1] != "." for name, text in meanings().items()
    }
    assert [name for name, is_good in is_line.items() if not is_good] == []


def test_every_setting_is_read_outside_config() -> None:
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py") if path != PACKAGE / "config.py"]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    read |= {setting for attention in ATTENTION.values() for setting in attention.settings.values()}
    assert set(DEFAULTS) - read == set()


def test_a_help_text_names_every_entry_of_its_menu_and_the_default_is_one() -> None:
    menus = {
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
    families = {"gaussian-poly-": "gaussian-poly-N", "pointwise-": "pointwise-ACT"}
    missing = []
    for setting, menu in menus.items():
        assert DEFAULTS[setting] in menu or setting == "track"
        for entry in menu:
            named = next((family for beginning, family in families.items() if entry.startswith(beginning)), entry)
            if not re.search(rf"\b{named}\b(?!-)", meanings()[setting]):
                missing.append((setting, entry))
    assert not missing


def test_the_default_model_is_gpt2_124m() -> None:
    model = RunConfig().model
    shape = (model.n_layer, model.n_head, model.n_embd, model.context_length, model.vocab_size, model.bias)
    assert shape == (12, 12, 768, 1024, 50257, True)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    for wrong, right in (("n_layers", "n_layer"), ("n-layer", "n_layer"), ("Steps", "steps"), ("learning", "")):
        message = refusal(wrong, 1)
        assert message.startswith(f"my.toml: unknown setting '{wrong}'")
        assert (f"(did you mean {right}?)" in message) == bool(right)


def test_settings_that_exclude_each_other_are_refused() -> None:
    for settings, message in (
        ({"n_embd": 36, "n_head": 4, "position": "rotary"}, r"invalid n_head: 4 .* rotary"),
        ({"batch_tokens": 1024, "gradient_accumulation_steps": 2}, r"batch_tokens: 1024 .*0, because gradient_accumu"),
        ({"lora_rank": 8}, r"invalid lora_rank: 8 .*0, because init = scratch has no weights to adapt"),
    ):
        with pytest.raises(ConfigError, match=message):
            updated(RunConfig(), settings, where="test")
    assert updated(RunConfig(), {"lora_rank": 8, "init": "gpt2"}, where="test").lora.lora_rank == 8


def test_a_change_leaves_the_other_settings_and_the_original_unchanged() -> None:
    before = RunConfig()
    after = updated(before, {"n_layer": 3, "lr": 1, "device": "cpu"}, where="test")
    assert {name for name, value in flatten(after).items() if value != DEFAULTS[name]} == {"n_layer", "lr", "device"}
    assert before == RunConfig()


def test_a_resumed_run_takes_the_new_size_of_a_stage_that_begins_at_its_step() -> None:
    assert merged_plan([(0, 2), (6, 4)], [(0, 3), (6, 6), (9, 8)], 6) == [(0, 2), (6, 6), (9, 8)]


def test_the_page_of_settings_is_generated_from_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tests/settings_page.py`"
