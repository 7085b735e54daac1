"""From a recipe's name and flags to a run's settings, each with its origin."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quillgpt.cli.arguments import parse, setting_types
from quillgpt.config import RunConfig, Scalar, updated
from quillgpt.errors import ConfigError, shown
from quillgpt.recipes import FINETUNE, default_out, finetuning, read_recipe, recipe_names, superseded
from quillgpt.recipes.aliases import ALIASES, NO, SWITCHES, YES, translate
from quillgpt.recipes.depth import DEEPEST, settings_at_depth

DEPTH = "--depth"

DESCRIPTION = """\
Train by a recipe, or continue the run that is already in --out: after a stop, the same command goes on.

RECIPE is {recipes}, a .toml file, or a run's directory.

With --dry-run nothing is trained or written: it shows every setting with its value, origin and meaning, and what \
follows from them.

With --depth 6 a recipe whose optimizer is muon is carried to six blocks: width, heads, batch, steps, rates and weight \
decay follow (docs/depth.md), and --dry-run shows what they come to; a flag of your own wins.

With --seeds 3 it trains three times, with consecutive seeds from --seed on, in OUT-seed-SEED: `quill compare` needs \
such repeats to tell a difference from noise.

Flags may be written --n-layer 4 or --n_layer=4, --compile or --no-compile; nanoGPT's names work too \
(docs/settings.md)."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A run's settings, the recipe they began from, and where each one that is not a default came from."""

    config: RunConfig
    recipe: str
    origins: dict[str, str]
    is_dry_run: bool


def load_settings(
    arguments: list[str],
    *,
    prog: str = "quill train RECIPE",
    description: str = DESCRIPTION,
    others: Iterable[str] = ("seeds",),
) -> Settings:
    """Settings from `[RECIPE] [--flag value ...]`: defaults, then the recipe, then the flags.

    `others` are flags that the command has besides, to tell the one that a misspelt flag may mean.
    """
    words, is_dry_run = _without_dry_run(arguments)
    words, depth = without_number(words, DEPTH, most=DEEPEST)
    recipe = words.pop(0) if words and not words[0].startswith("-") else ""
    if not recipe and not {"-h", "--help"} & set(words):
        raise ConfigError(f"which recipe? `{prog} ...`, where RECIPE is one of {', '.join(recipe_names())}, or a file")
    settings, origins = read_recipe(recipe) if recipe else ({}, {})

    derived: dict[str, Scalar] = {}

    def before_flags(given: Mapping[str, str]) -> RunConfig:
        kept = {name: value for name, value in settings.items() if name not in superseded(given)}
        config = updated(RunConfig(), kept, where=f"recipe {recipe}")
        if not depth:
            return config
        typed = _typed(given)
        whole = updated(RunConfig(), settings, where=f"recipe {recipe}")
        derived.update(settings_at_depth(whole, depth, typed))
        return updated(config, derived | typed, where=f"{DEPTH} {depth}")

    config, given = parse(
        RunConfig,
        words,
        prog=prog,
        default=before_flags,
        description=description.format(recipes=", ".join(recipe_names())),
        translate=translate,
        foreign_names=[*ALIASES, *SWITCHES, "dry_run", "depth", *others],
        switches=["compile"],
    )
    if {"steps", "minutes"} <= given.keys() and config.train.minutes:
        raise ConfigError("--steps and --minutes both set how long to train; leave one of them out")
    origins = {name: origin for name, origin in origins.items() if name not in superseded(given)}
    origins |= dict.fromkeys(derived, "depth")
    origins |= {name: f"flag {flag}" for name, flag in given.items()}
    if config.train.init == FINETUNE:
        config = finetuning(config)
        origins |= dict.fromkeys(("init", "out"), "init_from=finetune")
    if config.train.out == "auto":
        config = updated(config, {"out": default_out(recipe)}, where="--out")
        origins["out"] = "recipe's name"
    if config.train.init != "scratch":
        from quillgpt.train.starting_point import with_the_shape_of_init

        config, origins = with_the_shape_of_init(config, origins)
    return Settings(config=config, recipe=recipe, origins=origins, is_dry_run=is_dry_run)


def without_number(arguments: list[str], flag: str, *, most: int) -> tuple[list[str], int]:
    """The other arguments, and the number that a flag gives which is no setting of a run; 0 without it."""
    number, rest, words = 0, [], list(arguments)
    while words:
        name, has_value, value = words.pop(0).partition("=")
        if name != flag:
            rest.append(name + has_value + value)
            continue
        if not has_value:
            value = words.pop(0) if words else ""
        if not re.fullmatch(r"[0-9]{1,4}", value) or not 1 <= int(value) <= most:
            raise ConfigError(f"{flag} {shown(value)} is not possible: expected a whole number from 1 to {most:,}")
        number = int(value)
    return rest, number


def _typed(given: Mapping[str, str]) -> dict[str, Scalar]:
    """Values of flags as settings have them."""
    kinds = setting_types(RunConfig)
    return {name: value == "True" if kinds[name] is bool else kinds[name](value) for name, value in given.items()}


def _without_dry_run(arguments: list[str]) -> tuple[list[str], bool]:
    """The other arguments, and whether --dry-run is among them; it is no setting, because it is not kept with a run."""
    is_dry_run, rest = False, []
    for word in arguments:
        flag, has_value, value = word.partition("=")
        if flag.replace("_", "-") != "--dry-run":
            rest.append(word)
            continue
        if has_value and value.lower() not in YES + NO:
            raise ConfigError(f"{flag} {shown(value)} is neither true nor false")
        is_dry_run = not has_value or value.lower() in YES
    return rest, is_dry_run
