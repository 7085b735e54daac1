"""Checks that the groups of settings share; each names the setting, its value and what was expected."""

import dataclasses
from typing import Any

from quillgpt.errors import check_type, pick, require


def check_each(config: Any) -> None:
    """What can be told of a value by itself."""
    for setting in dataclasses.fields(config):
        name, value = setting.name, getattr(config, setting.name)
        check_type(name, value, type(setting.default))
        require(name, value, value != "" or name in ("path", "eval_tasks", "batch_ramp"), "something")


def check(config: Any, name: str, holds: bool, expected: str) -> None:
    """Refuse the setting's value unless the condition holds."""
    require(name, getattr(config, name), holds, expected)


def check_choice(config: Any, name: str, *choices: str) -> None:
    """Refuse a value that is none of the choices."""
    pick(dict.fromkeys(choices), getattr(config, name), name)
