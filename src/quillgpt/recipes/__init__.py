"""Recipes: TOML files that say what to train, how, on what, and what to expect; one file is one page of the lab book.

To add one: a file here. `extends = "NAME"` begins with another recipe's settings; tables only group, and the names may
be nanoGPT's (`aliases.py`).
"""

import difflib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from quillgpt.config import GROUPS, RunConfig, updated
from quillgpt.errors import ConfigError, nearest
from quillgpt.recipes.aliases import RECIPES, translate


def load_recipe(name_or_path: str) -> RunConfig:
    """The settings of a recipe by its name or its file."""
    return updated(RunConfig(), read_recipe(name_or_path)[0], where=f"recipe {name_or_path}")


def read_recipe(name_or_path: str, extended_by: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """A recipe's settings in our names, and for each the recipe that set it; `extends` names the one it builds on."""
    path = recipe_path(name_or_path)
    settings: dict[str, Any] = {}
    origins: dict[str, str] = {}
    content = read_toml(path)
    if "extends" in content:
        if path in extended_by:
            raise ConfigError(f"{path}: extends itself, by way of {' and '.join(str(other) for other in extended_by)}")
        settings, origins = read_recipe(str(content.pop("extends")), (*extended_by, path))
    for theirs, value in content.items():
        for name, translated in translate(theirs, value).items():
            settings[name] = translated
            origins[name] = f"recipe {path.stem}"
    return settings, origins


def recipe_path(name_or_path: str) -> Path:
    """The file of a recipe; an unknown name is a `ConfigError` that names the nearest."""
    name = RECIPES.get(name_or_path.removesuffix(".py").removeprefix("config/"), name_or_path)
    built_in = Path(str(resources.files("quillgpt.recipes").joinpath(f"{name}.toml")))
    if built_in.is_file() and "/" not in name:
        return built_in
    path = Path(name)
    if path.is_dir() and (path / "config.toml").is_file():
        return path / "config.toml"
    if path.suffix == ".toml":
        return path
    close = difflib.get_close_matches(name.replace("_", "-"), recipe_names(), n=1, cutoff=0.4)
    meant = f" (did you mean {close[0]}?)" if close else ""
    raise ConfigError(f"no recipe {name_or_path!r}{meant}; recipes are {', '.join(recipe_names())}, or a .toml file")


def recipe_names() -> list[str]:
    """The recipes in the package."""
    folder = resources.files("quillgpt.recipes")
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a recipe file, flat; tables only group them."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    settings: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) and name not in GROUPS:
            raise ConfigError(f"{path}: unknown table [{name}]{nearest(name, GROUPS)}; tables are {', '.join(GROUPS)}")
        settings |= value if isinstance(value, dict) else {name: value}
    return settings
