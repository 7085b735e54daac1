"""From a command line to a frozen dataclass, and from a recipe and flags to the settings of a run.

`tyro` parses and writes the help. Before it, flags are rewritten to `--name=value`: `--n_layer 3`, `--compile`,
`--no-compile`, other projects' names (`aliases.py`). After it, its error box is reduced to one line.
"""

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import tyro

from quillgpt.config import DataConfig, RunConfig, Scalar, meanings, updated
from quillgpt.errors import TYPE_NAMES, ConfigError, nearest, require, shown
from quillgpt.recipes import FINETUNE, default_out, finetuning, read_recipe, recipe_names, superseded
from quillgpt.recipes.aliases import ALIASES, NO, SWITCHES, YES, translate
from quillgpt.recipes.depth import DEEPEST, settings_at_depth

DEPTH = "--depth"

DESCRIPTION = """\
Train by a recipe, or continue the run in --out: after a stop, the same command resumes it.

RECIPE is {recipes}, a .toml file, or a run's directory.

With --dry-run nothing is trained or written: it shows every setting with its value, origin and meaning, and what is \
derived from them.

With --depth 6 a recipe whose optimizer is muon is scaled to six blocks: width, heads, batch, steps, rates and weight \
decay follow (docs/depth.md), and --dry-run shows them; your own flags override them.

With --seeds 3 it trains three times, with consecutive seeds from --seed, in OUT-seed-SEED: `quill compare` needs such \
repeats to distinguish a difference from noise.

Flags may be written --n-layer 4 or --n_layer=4, --compile or --no-compile; nanoGPT's names work too \
(docs/settings.md)."""

Schema = TypeVar("Schema")
Translate = Callable[[str, Any], dict[str, Any]]


def parse(
    schema: type[Schema],
    arguments: list[str],
    *,
    prog: str,
    description: str | None = None,
    default: Callable[[Mapping[str, str]], Schema] | None = None,
    translate: Translate = lambda name, value: {name: value},
    foreign_names: Iterable[str] = (),
    switches: Iterable[str] = (),
) -> tuple[Schema, dict[str, str]]:
    """Parse the arguments into the schema; also return the settings given by flags, each with its flag as typed.

    default: returns the settings before the flags, from the values of the flags. translate: turns a foreign name and
    its value into settings of the schema. foreign_names: candidates for "did you mean". switches: string settings that
    can be given like a boolean (`--compile`, `--no-compile`). A mistake is a `ConfigError`; `--help` prints and exits.
    """
    tokens, given, values = _Flags(schema, translate, foreign_names, switches, prog).rewrite(arguments)
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            parsed = tyro.cli(
                schema,
                prog=prog,
                description=description,
                args=tokens,
                default=schema() if default is None else default(values),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(f"{_first_line(captured.getvalue())}; `{prog} --help` lists all flags") from None
    return parsed, given


def setting_types(schema: type) -> dict[str, type]:
    """Return names and types of all settings, including those of nested dataclasses."""
    types: dict[str, type] = {}
    hints = typing.get_type_hints(schema)
    for option in dataclasses.fields(schema):
        kind = hints[option.name]
        types |= setting_types(kind) if dataclasses.is_dataclass(kind) else {option.name: kind}
    return types


class _Flags:
    """Rewrites flags to `--name=value` for tyro, and checks names, numbers and booleans."""

    def __init__(
        self, schema: type, translate: Translate, foreign_names: Iterable[str], switches: Iterable[str], prog: str
    ) -> None:
        self._types = setting_types(schema)
        self._names = [name.replace("_", "-") for name in [*self._types, *foreign_names]]
        self._on_off = {name for name, kind in self._types.items() if kind is bool} | {*switches}
        self._translate = translate
        self._prog = prog
        self._has_positional = "Positional" in repr(typing.get_type_hints(schema, include_extras=True))

    def rewrite(self, arguments: list[str]) -> tuple[list[str], dict[str, str], dict[str, str]]:
        """Return the rewritten arguments, and for each setting that is given its flag and its value."""
        tokens: list[str] = []
        given: dict[str, str] = {}
        values: dict[str, str] = {}
        rest = list(arguments)
        while rest:
            token = rest.pop(0)
            if not token.startswith("--") or token in ("--", "--help"):
                tokens.append(token)
                continue
            flag, has_value, value = token.partition("=")
            name = flag.removeprefix("--").replace("-", "_")
            if not has_value and name.startswith("no_") and self._is_switch(name.removeprefix("no_")):
                name, value = name.removeprefix("no_"), "false"
            elif not has_value:
                value = self._next_value(name, flag, rest)
            for setting, translated in self._translate(name, value).items():
                given[setting] = flag
                values[setting] = self._checked(setting, flag, str(translated))
                tokens.append(f"--{setting.replace('_', '-')}={values[setting]}")
        return tokens, given, values

    def _is_switch(self, name: str) -> bool:
        """Whether a flag without a value means true: a boolean of ours or of another project."""
        if name in self._types:
            return name in self._on_off
        meaning = self._translate(name, "true")
        return "true" not in meaning.values() or meaning.keys() <= self._on_off

    def _next_value(self, name: str, flag: str, rest: list[str]) -> str:
        is_flag = not rest or (rest[0].startswith("--") and len(rest[0]) > 2)
        if self._is_switch(name):
            is_value = not is_flag and (not self._has_positional or rest[0].lower() in YES + NO)
            return rest.pop(0) if is_value else "true"
        if is_flag and self._translate(name, "").keys() <= self._types.keys():
            raise ConfigError(f"{flag} needs a value, as in {flag}=VALUE")
        return "" if is_flag else rest.pop(0)

    def _checked(self, setting: str, flag: str, value: str) -> str:
        """The value as tyro reads it; an unknown name or a value of another type is a `ConfigError`."""
        if setting not in self._types:
            meant = nearest(setting, self._names).replace("mean ", "mean --")
            raise ConfigError(f"no flag {flag}{meant}; `{self._prog} --help` lists all flags")
        kind = self._types[setting]
        if setting in self._on_off and value.lower() in YES + NO:
            is_on = value.lower() in YES
            return str(is_on) if kind is bool else ("on" if is_on else "off")
        is_valid = kind is not bool
        if kind in (int, float):
            try:
                kind(value)
            except ValueError:
                is_valid = False
        require(flag, value, is_valid, TYPE_NAMES.get(kind, ""))
        return value


def _first_line(box: str) -> str:
    """The message inside tyro's error box, between the title and the first rule."""
    message: list[str] = []
    for line in box.splitlines()[1:]:
        content = line.strip("│ ")
        is_rule = set(content) <= set("─-╰╯")  # in other encodings than UTF-8 the box is drawn with blanks and hyphens
        if is_rule and message:
            break
        if not is_rule:
            message.append(content)
    return " ".join(message) or "invalid arguments"


def flag(meaning: str, *short: str) -> Any:
    """Return an annotation of a dataclass field: the help of its flag, and short names."""
    return tyro.conf.arg(help=meaning, aliases=list(short))


def setting(name: str) -> Any:
    """Return an annotation of a dataclass field with the help of a setting."""
    return flag(meanings()[name])


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options that say how a source is read, for commands that read text."""

    path: Annotated[str, setting("path")] = DataConfig.path
    text_field: Annotated[str, setting("text_field")] = DataConfig.text_field
    subset: Annotated[str, setting("subset")] = DataConfig.subset
    documents: Annotated[int, setting("documents")] = DataConfig.documents
    errors: Annotated[str, setting("errors")] = DataConfig.errors

    def data_config(self, **settings: Any) -> DataConfig:
        """Return these options and other settings as a DataConfig."""
        names = [option.name for option in dataclasses.fields(SourceOptions)]
        return DataConfig(**{name: getattr(self, name) for name in names}, **settings)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A run's settings, the recipe they are based on, and the origin of each one that is not a default."""

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
    """Return the settings of `RECIPE [--flag value ...]`: defaults, then the recipe, then the flags.

    others: the command's other flags, candidates for "did you mean".
    """
    words, is_dry_run = _without_dry_run(arguments)
    words, depth = without_number(words, DEPTH, most=DEEPEST)
    recipe = words.pop(0) if words and not words[0].startswith("-") else ""
    recipes = ", ".join(recipe_names())
    if not recipe and not {"-h", "--help"} & set(words):
        raise ConfigError(f"which recipe? `{prog} ...`, where RECIPE is one of {recipes}, or a file")
    settings, origins = read_recipe(recipe) if recipe else ({}, {})
    derived: dict[str, Scalar] = {}

    def before_flags(given: Mapping[str, str]) -> RunConfig:
        kept = {name: value for name, value in settings.items() if name not in superseded(given)}
        config = updated(RunConfig(), kept, where=f"recipe {recipe}")
        if not depth:
            return config
        typed = _typed(given)
        derived.update(settings_at_depth(updated(RunConfig(), settings, where=f"recipe {recipe}"), depth, typed))
        return updated(config, derived | typed, where=f"{DEPTH} {depth}")

    config, given = parse(
        RunConfig,
        words,
        prog=prog,
        default=before_flags,
        description=description.format(recipes=recipes),
        translate=translate,
        foreign_names=[*ALIASES, *SWITCHES, "dry_run", "depth", *others],
        switches=["compile"],
    )
    if {"steps", "minutes"} <= given.keys() and config.train.minutes:
        raise ConfigError("--steps and --minutes both set how long to train; use one of them")
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
        from quillgpt.checkpoint.init_from import with_init_shape

        config, origins = with_init_shape(config, origins)
    return Settings(config=config, recipe=recipe, origins=origins, is_dry_run=is_dry_run)


def without_number(arguments: list[str], flag: str, *, most: int) -> tuple[list[str], int]:
    """Return the other arguments, and the number given by a flag that is not a setting of a run; 0 without it."""
    rest, value = _without_flag(arguments, flag, "")
    if value is not None and not (re.fullmatch(r"[0-9]{1,4}", value) and 1 <= int(value) <= most):
        raise ConfigError(f"invalid {flag}: {shown(value)} (must be an integer from 1 to {most:,})")
    return rest, int(value or 0)


def _without_dry_run(arguments: list[str]) -> tuple[list[str], bool]:
    """The other arguments, and whether --dry-run is given; it is not a setting, because a run does not keep it."""
    rest, value = _without_flag(arguments, "--dry-run", "true")
    require("--dry-run", value, value is None or value.lower() in YES + NO, "true or false")
    return rest, value is not None and value.lower() in YES


def _without_flag(arguments: list[str], flag: str, default: str) -> tuple[list[str], str | None]:
    """The other arguments, and the flag's last value: after "=", else the default, or else the next argument."""
    value, rest, words = None, [], list(arguments)
    while words:
        name, has_value, text = words.pop(0).partition("=")
        if name.replace("_", "-") != flag:
            rest.append(name + has_value + text)
        elif has_value or default:
            value = text if has_value else default
        else:
            value = words.pop(0) if words else ""
    return rest, value


def _typed(given: Mapping[str, str]) -> dict[str, Scalar]:
    """Values of flags in the types of their settings."""
    kinds = setting_types(RunConfig)
    return {name: value == "True" if kinds[name] is bool else kinds[name](value) for name, value in given.items()}
