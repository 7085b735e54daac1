"""From a command line to a frozen dataclass: names forgiving, values strict, every mistake one line.

`tyro` parses and writes the help. Before it, names are brought to one form: `--n_layer` and `--n-layer`, `--compile`,
`--compile=False` and `--no-compile`, other projects' names (`aliases.py`); after it, its error box becomes one line.
"""

import contextlib
import dataclasses
import io
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

import tyro

from quillgpt.errors import ConfigError, nearest, shown
from quillgpt.recipes.aliases import NO, YES

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
    """Parse the arguments into the schema; also return each setting that a flag gave, with the flag as typed.

    `default` makes what the flags change, once it is known which settings they give. `translate` turns a foreign name
    and its value into settings of the schema; `foreign_names` are for telling the nearest name. `switches` are string
    settings that can be given like a boolean (`--compile`, `--no-compile`). A mistake is a `ConfigError`; `--help`
    prints and exits.
    """
    tokens, given, values = _Flags(schema, translate, foreign_names, switches, prog).canonical(arguments)
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
    """Every setting's name and type, those of nested dataclasses included; a list's type is that of its elements."""
    found: dict[str, type] = {}
    hints = typing.get_type_hints(schema)
    for setting in dataclasses.fields(schema):
        kind = hints[setting.name]
        if dataclasses.is_dataclass(kind):
            found |= setting_types(typing.cast(type, kind))
        else:
            found[setting.name] = kind
    return found


class _Flags:
    """Brings flags to the one form that tyro gets, and checks their names and numbers on the way."""

    def __init__(
        self, schema: type, translate: Translate, foreign_names: Iterable[str], switches: Iterable[str], prog: str
    ) -> None:
        self._types = setting_types(schema)
        self._names = [name.replace("_", "-") for name in [*self._types, *foreign_names]]
        self._on_off = {name for name, kind in self._types.items() if kind is bool} | {*switches}
        self._translate = translate
        self._prog = prog
        self._takes_words = "Positional" in repr(typing.get_type_hints(schema, include_extras=True))

    def canonical(self, arguments: list[str]) -> tuple[list[str], dict[str, str], dict[str, str]]:
        """Rewrite the flags to their one form; return them, the flag of each setting they gave, and its value."""
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
        """Whether a flag may stand without a value, for true: a boolean of ours, or of theirs."""
        if name in self._types:
            return name in self._on_off
        meaning = self._translate(name, "true")
        return "true" not in meaning.values() or meaning.keys() <= self._on_off

    def _next_value(self, name: str, flag: str, rest: list[str]) -> str:
        is_flag = not rest or (rest[0].startswith("--") and len(rest[0]) > 2)
        if self._is_switch(name):
            is_value = not is_flag and (not self._takes_words or rest[0].lower() in YES + NO)
            return rest.pop(0) if is_value else "true"
        if is_flag and self._translate(name, "").keys() <= self._types.keys():
            raise ConfigError(f"{flag} needs a value, as in {flag}=VALUE")
        return "" if is_flag else rest.pop(0)

    def _checked(self, setting: str, flag: str, value: str) -> str:
        """The value as tyro reads it; a name that does not exist, or another type, is a `ConfigError`."""
        if setting not in self._types:
            meant = nearest(setting, self._names).replace("mean ", "mean --")
            raise ConfigError(f"no flag {flag}{meant}; `{self._prog} --help` lists all flags")
        kind = self._types[setting]
        if setting in self._on_off and value.lower() in YES + NO:
            is_on = value.lower() in YES
            return str(is_on) if kind is bool else ("on" if is_on else "off")
        try:
            if kind in (int, float):
                kind(value)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise ConfigError(f"{flag} {shown(value)} is not {expected}") from None
        if kind is bool:
            raise ConfigError(f"{flag} {shown(value)} is neither true nor false")
        return value


def _first_line(box: str) -> str:
    """The message inside tyro's error box: what stands between its title and its first rule."""
    message: list[str] = []
    for line in box.splitlines()[1:]:
        content = line.strip("│ ")
        is_rule = set(content) <= set("─-╰╯")  # where the output is not UTF-8 the frame is of blanks and hyphens
        if is_rule and message:
            break
        if not is_rule:
            message.append(content)
    return " ".join(message) or "these arguments cannot be understood"


def flag(meaning: str, *short: str) -> Any:
    """An annotation for a dataclass field that gives the flag's help and its short names."""
    return tyro.conf.arg(help=meaning, aliases=list(short))


__all__ = ["Annotated", "flag", "parse", "setting_types"]
