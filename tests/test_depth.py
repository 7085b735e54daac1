"""--depth: nothing changes at a recipe's own depth, elsewhere the published rules hold, and a flag has precedence."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from quillgpt.cli.arguments import load_settings
from quillgpt.config import RunConfig, flatten, updated
from quillgpt.errors import ConfigError
from quillgpt.model.sizes import flops_per_token, parameter_count
from quillgpt.recipes import recipe_config, recipe_names
from quillgpt.recipes.depth import DEEPEST, _matrix_parameters, _operations, settings_at_depth
from quillgpt.run_dir import config_toml

MODERN = [name for name in recipe_names() if recipe_config(name).optim.optimizer == "muon"]
TIMED = """
optimizer = "muon"
n_layer = 4
n_head = 3
n_embd = 192
context_length = 256
vocab_size = 1024
tokenizer = "bpe"
minutes = 2
batch_tokens = 2048
batch_size = 8
lr = 0.02
embedding_lr = 0.3
weight_decay = 0.1
"""


@pytest.fixture
def timed(tmp_path: Path) -> str:
    """A recipe of two minutes."""
    path = tmp_path / "timed.toml"
    path.write_text(TIMED, encoding="utf-8")
    return str(path)


def at(line: str) -> RunConfig:
    return load_settings(line.split()).config


def test_at_its_own_depth_a_recipe_is_unchanged(timed: str) -> None:
    for name in MODERN:
        recipe = recipe_config(name)
        assert flatten(at(f"{name} --depth {recipe.model.n_layer}")) == flatten(recipe), name
    for text in (
        TIMED.replace("lr = 0.02", "lr = 0.0212345678"),
        TIMED.replace("batch_tokens = 2048", "gradient_accumulation_steps = 2"),
    ):
        Path(timed).write_text(text, encoding="utf-8")
        assert flatten(at(f"{timed} --depth 4")) == flatten(recipe_config(timed))
    assert at(f"{timed} --depth 12").train.batch_tokens < 2 * 8 * 256


def test_the_rules_are_nanochats() -> None:
    """Its formulas with 12 blocks as the reference; its width is rounded up to heads of 128 as well."""
    twelve = recipe_config("modern-124m")
    for depth in (4, 6, 8, 12, 16, 20, 24, 26):
        config = at(f"modern-124m --depth {depth}")
        width = 128 * math.ceil(64 * depth / 128)
        parameters, reference = (12 * n * c**2 + 50257 * c for n, c in ((depth, width), (12, 768)))
        tokens = 3250 * 524288 * parameters / reference
        batch = 2 ** round(19 + 0.383 * math.log2(parameters / reference))
        assert (config.model.n_layer, config.model.n_embd, config.model.n_head) == (depth, width, width // 128)
        assert (config.train.batch_tokens, config.train.steps) == (batch, round(tokens / batch))
        root, by_width = math.sqrt(batch / 2**19), (width / 768) ** -0.5
        for name, expected in {
            "lr": 0.025 * root,
            "scalar_lr": 0.015 * root,
            "embedding_lr": 0.7 * root * by_width,
            "head_lr": 0.004 * root * by_width,
            "weight_decay": 0.05 * root * reference / parameters,
        }.items():
            assert flatten(config)[name] == pytest.approx(expected, rel=1e-3), name
        unchanged = {name for name, value in flatten(config).items() if value == flatten(twelve)[name]}
        assert flatten(config).keys() - unchanged <= settings_at_depth(twelve, depth, {}).keys()


def test_the_counts_are_those_of_the_model() -> None:
    for depth in (1, 2, 5, 12, 30):
        config = at(f"modern-124m --depth {depth}")
        model = config.model
        embeddings = model.vocab_size * model.n_embd
        assert _matrix_parameters(flatten(config)) == pytest.approx(parameter_count(model) - embeddings, rel=2e-3)
        assert _operations(flatten(config)) == pytest.approx(flops_per_token(model), rel=2e-3)


def test_in_the_same_minutes_a_deeper_model_sees_fewer_tokens_in_smaller_batches(timed: str) -> None:
    config = at(f"{timed} --depth 8")
    model = replace(config.model, tied_head=True)
    ratio = flops_per_token(replace(model, n_layer=4, n_embd=192, n_head=3)) / flops_per_token(model)
    assert (config.model.n_embd, config.model.n_head, config.train.minutes) == (384, 6, 2)
    assert config.train.batch_tokens == 2048 * 2 ** round(0.383 * math.log2(ratio)) == 1024
    assert config.optim.lr == pytest.approx(0.02 / math.sqrt(2), rel=1e-3)
    assert config.optim.weight_decay == pytest.approx(0.1 / math.sqrt(2) / ratio, rel=0.02)
    assert at(f"{timed} --depth 4 --minutes 20").train.batch_tokens == 2048 * 2  # ten times the tokens


def test_a_flag_has_precedence_and_the_rest_follows_from_it(timed: str) -> None:
    for flags, expected in {
        "--n-embd 320": {"n_embd": 320, "n_head": 5},
        "--n-head 2": {"n_embd": 320, "n_head": 2},
        "--lr 0.5": {"lr": 0.5},
        "--embedding_lr=0.5": {"embedding_lr": 0.5},
        "--weight-decay 0": {"weight_decay": 0.0},
        "--batch-tokens 512": {"batch_tokens": 512, "lr": 0.01},
        "--batch-size 2": {"batch_size": 2, "batch_tokens": 1024},
        "--gradient-accumulation-steps 4": {"gradient_accumulation_steps": 4, "batch_tokens": 0},
        "--block_size 128": {"context_length": 128},
        "--steps 9": {"steps": 9, "minutes": 0.0},
    }.items():
        settings = load_settings([timed, "--depth", "6", *flags.split()])
        values = flatten(settings.config)
        assert {name: values[name] for name in expected} == expected, flags
        given = flags.split()[0].partition("=")[0]
        assert [origin for origin in settings.origins.values() if "flag" in origin] == [f"flag {given}"]
        assert settings.origins["n_layer"] == "depth"


def test_what_is_given_is_not_derived_and_every_derived_value_has_its_origin(timed: str) -> None:
    recipe, given = recipe_config("modern-124m"), {"lr": 0.5, "n_embd": 256, "steps": 7, "weight_decay": 0.0}
    assert settings_at_depth(recipe, 6, {}).keys() - settings_at_depth(recipe, 6, given).keys() == given.keys()
    origins = load_settings([timed, "--depth=6"]).origins
    rates = {"lr", "min_lr", "embedding_lr", "head_lr", "scalar_lr", "weight_decay"}
    derived = {"n_layer", "n_embd", "n_head", "batch_tokens", "gradient_accumulation_steps"} | rates
    assert {name for name, origin in origins.items() if origin == "depth"} == derived


def test_an_impossible_depth_is_refused_in_one_line(timed: str) -> None:
    Path(timed).write_text(TIMED.replace("batch_tokens = 2048\nbatch_size = 8", ""), encoding="utf-8")
    for line, expected in (
        *((f"modern-124m --depth {word}", "invalid --depth: ") for word in ("0", "-1", "x", "6.5", "1e3", "²", "0x6")),
        (f"modern-124m --depth {DEEPEST + 1}", "1 to 256"),
        (f"modern-124m --depth {10**9}", "1 to 256"),
        ("modern-124m --depth", "--depth: ''"),
        ("modern-124m --depth=", "--depth: ''"),
        ("modern-124m --depth 6 --n-layer 6", "--depth and --n-layer both set"),
        ("modern-124m --depth 6 --init gpt2", "--depth needs init = scratch"),
        ("gpt2-124m --depth 6", "--depth needs a recipe with optimizer = muon, this one has adamw"),
        (f"{timed} --depth 6", "--depth needs a recipe that sets its batch"),
        ("modern-124m --depth 6 --n-embd 0", "invalid n_embd: 0"),
        ("modern-124m --depth 6 --n-head 0", "invalid n_head: 0"),
        ("modern-124m --depth 6 --n-head -3", "invalid n_head: -3"),
        ("modern-124m --depth 6 --context-length 0", "invalid context_length: 0"),
        ("modern-124m --depth 6 --batch-tokens 1000", "invalid batch_tokens: 1000"),
        ("modern-124m --depth 6 --batch-tokens -1024", "invalid batch_tokens: -1024"),
        ("modern-124m --depth 6 --minutes -1", "invalid minutes: -1.0"),
        ("modern-124m --depth 6 --minutes inf", "invalid minutes: inf"),
        ("modern-124m --depth 6 --lr -1", "invalid lr: -1.0"),
        ("modern-124m --depth 6 --lr nan", "invalid lr: nan"),
        ("modern-124m --dept 6", "did you mean --depth"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_settings(line.split(" "))
        assert expected in str(caught.value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


def test_every_depth_gives_possible_settings_that_can_be_saved_as_a_recipe(timed: str, tmp_path: Path) -> None:
    for name in [*MODERN, timed]:
        for depth in (1, 3, 6, 7, 64, DEEPEST):
            config = at(f"{name} --depth {depth}")
            assert config == updated(RunConfig(), flatten(config), where="test")
            assert config.train.batch_tokens >= config.model.context_length
            assert config.optim.lr > 0
    (tmp_path / "again.toml").write_text(config_toml(config), encoding="utf-8")
    again = flatten(recipe_config(str(tmp_path / "again.toml")))
    assert {name for name, value in flatten(config).items() if again[name] != value} == {"out"}


def test_from_python_it_is_the_same(timed: str) -> None:
    assert recipe_config(timed, depth=6) == at(f"{timed} --depth 6")
    assert recipe_config(timed, depth=6, lr=0.5, steps=9) == at(f"{timed} --depth 6 --lr 0.5 --steps 9")
    for depth in (-1, 0, "6", 6.0, True):
        with pytest.raises(ConfigError, match=r"^invalid depth: "):
            recipe_config(timed, depth=depth)
    with pytest.raises(ConfigError, match=r"^load_recipe: invalid n_head: '2' \(must be an integer\)"):
        recipe_config(timed, depth=6, n_head="2")
