"""From a command line to a frozen dataclass: names forgiving, values strict, every mistake one line.

`tyro` parses and writes the help. Before it, names are brought to one form: `--n_layer` and `--n-layer`, `--compile`,
`--compile=False` and `--no-compile`, other projects' names (`aliases.py`); after it, its error box becomes one line.
"""

import contextlib
import dataclasses
import io
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import tyro

from quillgpt.errors import ConfigError, nearest

Schema = TypeVar("Schema")
Translate = Callable[[str, Any], dict[str, Any]]

YES = ("true", "1", "yes", "on")
NO = ("false", "0", "no", "off")


def parse(
    schema: type[Schema],
    arguments: list[str],
    *,
    prog: str,
    default: Schema | None = None,
    translate: Translate = lambda name, value: {name: value},
    switches: Iterable[str] = (),
) -> tuple[Schema, dict[str, str]]:
    """Parse the arguments into the schema; also return each setting that a flag gave, with the flag as typed.

    `translate` turns a foreign name and its value into settings of the schema. `switches` are string settings that
    can be given like a boolean (`--compile`, `--no-compile`). A mistake is a `ConfigError`; `--help` prints and exits.
    """
    types = setting_types(schema)
    on_off = {name for name, kind in types.items() if kind is bool} | set(switches)
    tokens, given = _canonical(arguments, types, on_off, translate, prog)
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            parsed = tyro.cli(
                schema,
                prog=prog,
                args=tokens,
                default=schema() if default is None else default,
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


def _canonical(
    arguments: list[str], types: dict[str, type], on_off: set[str], translate: Translate, prog: str
) -> tuple[list[str], dict[str, str]]:
    """Rewrite the flags to their one form; return them with the settings they gave."""
    tokens: list[str] = []
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or token in ("--", "--help"):
            tokens.append(token)
            continue
        flag, has_value, value = token.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if name.startswith("no_") and name.removeprefix("no_") in on_off and not has_value:
            name, has_value, value = name.removeprefix("no_"), "=", "false"
        if not has_value:
            value = _next_value(rest, optional=set(translate(name, "true")) <= on_off, flag=flag)
        for setting, translated in translate(name, value).items():
            if setting not in types:
                raise ConfigError(f"no flag {flag}{_nearest_flag(setting, types)}; `{prog} --help` lists all flags")
            given[setting] = flag
            text = _boolean(flag, translated, types[setting]) if setting in on_off else str(translated)
            tokens.append(f"--{setting.replace('_', '-')}={text}")
    return tokens, given


def _nearest_flag(setting: str, types: dict[str, type]) -> str:
    return nearest("--" + setting.replace("_", "-"), ["--" + name.replace("_", "-") for name in types])


def _next_value(rest: list[str], *, optional: bool, flag: str) -> str:
    if optional:
        return rest.pop(0) if rest and rest[0].lower() in YES + NO else "true"
    if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
        raise ConfigError(f"{flag} needs a value, as in {flag}=VALUE")
    return rest.pop(0)


def _boolean(flag: str, value: object, kind: type) -> str:
    word = str(value).lower()
    if word in YES:
        return "True" if kind is bool else "on"
    if word in NO:
        return "False" if kind is bool else "off"
    if kind is bool:
        raise ConfigError(f"{flag}={value} is neither true nor false")
    return str(value)


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
