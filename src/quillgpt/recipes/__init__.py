"""Recipes: TOML files of settings, whose comments say how to run them and what to expect.

To add a recipe: a file here. `extends = "NAME"` starts from another recipe's settings, `extends = "FILE.toml"` from
those of a file in the same directory. Tables only group settings. nanoGPT's names are accepted too (`aliases.py`).
"""

import contextlib
from collections.abc import Collection, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from quillgpt import records
from quillgpt.config import GROUPS, RunConfig, Scalar, updated
from quillgpt.errors import ConfigError, check_type, nearest, require, shown
from quillgpt.recipes.aliases import RECIPES, translate
from quillgpt.recipes.depth import settings_at_depth

FINETUNE = "finetune"
"""value of `init` in other projects, where `out` names the run to start from"""
INSTEAD_OF = {
    "steps": "minutes",
    "batch_tokens": "gradient_accumulation_steps",
    "gradient_accumulation_steps": "batch_tokens",
}
"""Alternative settings: the first, given by a recipe or a flag, replaces the second of an earlier recipe."""


def recipe_config(name_or_path: str, **changes: Scalar) -> RunConfig:
    """Return the settings of a recipe by its name or file, with changes; `init` is not opened.

    `depth` among the changes scales the recipe to that number of blocks (`recipes/depth.py`).
    """
    where = f"recipe {name_or_path}"
    depth = changes.pop("depth", None)
    settings = {"out": default_out(name_or_path)} | read_recipe(name_or_path)[0]
    if depth is not None:
        check_type("depth", depth, int)
        changes = settings_at_depth(updated(RunConfig(), settings, where=where), int(depth), changes) | changes
    void = superseded(changes)
    config = updated(RunConfig(), {name: value for name, value in settings.items() if name not in void}, where=where)
    config = updated(config, changes, where="load_recipe")
    return finetuning(config) if config.train.init == FINETUNE else config


def read_recipe(name_or_path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a recipe's settings in our names, and the recipe that set each; `extends` names the one it starts from."""
    return _read(recipe_path(name_or_path), ())


def default_out(name_or_path: str) -> str:
    """Return the run directory of a recipe; a run's own config.toml gets a new one."""
    path = recipe_path(name_or_path).absolute()
    return f"runs/{path.parent.name}-again" if path.name == "config.toml" else f"runs/{path.stem}"


def finetuning(config: RunConfig) -> RunConfig:
    """Return the settings for init = finetune: start from the run in `out` and write to OUT-finetuned."""
    run = config.train.out.rstrip("/")
    if run == "auto":
        raise ConfigError(f"init = {FINETUNE}: which run? --out-dir RUN starts from RUN and writes to RUN-finetuned")
    return updated(config, {"init": run, "out": f"{run}-{FINETUNE}d"}, where=f"init = {FINETUNE}")


def superseded(given: Collection[str]) -> set[str]:
    """The settings of an earlier recipe that those given now replace."""
    return {other for name, other in INSTEAD_OF.items() if name in given and other not in given}


def recipe_path(name_or_path: str, folder: Path = Path()) -> Path:
    """Return the file of a recipe, relative to the folder; an unknown name is a `ConfigError` with the nearest one."""
    name = RECIPES.get(name_or_path.removesuffix(".py").removeprefix("config/"), name_or_path)
    names = recipe_names()
    if name in names:
        return Path(str(resources.files("quillgpt.recipes").joinpath(f"{name}.toml")))
    path = folder / name
    if path.suffix == ".toml":
        return path
    with contextlib.suppress(OSError, ValueError):  # not a file name at all
        if name and (path / "config.toml").is_file():
            return path / "config.toml"
    meant = f"{shown(name_or_path)}{nearest(name, names)}"
    raise ConfigError(f"no recipe {meant}; recipes are {', '.join(names)}, or a .toml file")


def recipe_names() -> list[str]:
    """The recipes in the package."""
    folder = resources.files("quillgpt.recipes")
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings of a recipe file without their tables; a file that cannot be read is a `ConfigError`."""
    try:
        content = records.read_toml(path, error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe file") from None
    settings: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) and name not in GROUPS:
            meant = nearest(name, GROUPS)
            raise ConfigError(f"{path}: unknown table [{name}]{meant}; tables are {', '.join(GROUPS)}")
        entries = value if isinstance(value, dict) else {name: value}
        if twice := settings.keys() & entries.keys():
            raise ConfigError(f"{path}: {min(twice)} is set twice; leave one of them")
        settings |= entries
    return settings


def _read(path: Path, extended_by: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a recipe and those it extends, the basis first."""
    content = read_toml(path)
    settings: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if "extends" in content:
        base, chain = content.pop("extends"), (*extended_by, path)
        with _errors_of(path):
            require("extends", base, isinstance(base, str), "the name of a recipe")
        with _errors_of(path, "extends"):
            base_path = recipe_path(base, folder=path.parent)
        if base_path.resolve() in [other.resolve() for other in chain]:
            raise ConfigError(f"{path}: extends {base_path}, which extends it; remove one `extends`")
        settings, origins = _read(base_path, chain)
    own = _translated(path, content)
    for void in superseded(own) & settings.keys():
        del settings[void], origins[void]
    return settings | own, origins | dict.fromkeys(own, f"recipe {path.stem}")


def _translated(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content with our names for settings; two names of one setting are a `ConfigError`."""
    own: dict[str, Any] = {}
    for name, value in content.items():
        with _errors_of(path):
            ours = translate(name, value)
        if twice := own.keys() & ours.keys():
            raise ConfigError(f"{path}: {min(twice)} is set twice, once as {name}; leave one of them")
        own |= ours
    return own


@contextlib.contextmanager
def _errors_of(*places: object) -> Iterator[None]:
    """Put the places in front of the message of a `ConfigError`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(": ".join([*map(str, places), str(error)])) from None
