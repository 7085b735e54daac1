"""Recipes: TOML files that say what to train, how, on what, and what to expect; one file is one page of the lab book.

To add one: a file here. `extends = "NAME"` begins with another recipe's settings, `extends = "FILE.toml"` with those of
a file beside it; tables only group, and the names may be nanoGPT's (`aliases.py`).
"""

import contextlib
import tomllib
from collections.abc import Collection, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from quillgpt.config import GROUPS, RunConfig, Scalar, updated
from quillgpt.errors import ConfigError, check_type, nearest, shown
from quillgpt.recipes.aliases import RECIPES, translate
from quillgpt.recipes.depth import settings_at_depth

LARGEST_FILE_BYTES = 1 << 20

FINETUNE = "finetune"
"""what other projects write for `init`, where `out` names the run to start from"""

INSTEAD_OF = {
    "steps": "minutes",
    "batch_tokens": "gradient_accumulation_steps",
    "gradient_accumulation_steps": "batch_tokens",
}
"""Two ways to say one thing: the first, given by a recipe or a flag, makes the second of an earlier recipe void."""


def load_recipe(name_or_path: str, **changes: Scalar) -> RunConfig:
    """The settings of a recipe by its name or its file, some of them changed; `init` is not looked at.

    `depth` among the changes carries the recipe to so many blocks, by the rules of `recipes/depth.py`.
    """
    depth = changes.pop("depth", None)
    settings = {"out": default_out(name_or_path)} | read_recipe(name_or_path)[0]
    kept = {name: value for name, value in settings.items() if name not in superseded(changes)}
    config = updated(RunConfig(), kept, where=f"recipe {name_or_path}")
    if depth is not None:
        check_type("depth", depth, int)
        whole = updated(RunConfig(), settings, where=f"recipe {name_or_path}")
        changes = settings_at_depth(whole, int(depth), changes) | changes
    config = updated(config, changes, where="load_recipe")
    return finetuning(config) if config.train.init == FINETUNE else config


def read_recipe(name_or_path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A recipe's settings in our names, and for each the recipe that set it; `extends` names the one it builds on."""
    return _read(recipe_path(name_or_path), ())


def default_out(name_or_path: str) -> str:
    """The run directory of a recipe; a run's own config.toml is repeated under a new name."""
    path = recipe_path(name_or_path).absolute()
    return f"runs/{path.parent.name}-again" if path.name == "config.toml" else f"runs/{path.stem}"


def finetuning(config: RunConfig) -> RunConfig:
    """The settings where `init` is `finetune`: start from the run in `out`, which stays, and write to OUT-finetuned."""
    run = config.train.out.rstrip("/")
    if run == "auto":
        raise ConfigError(f"init = {FINETUNE}: which run? --out-dir RUN starts from RUN and writes to RUN-finetuned")
    return updated(config, {"init": run, "out": f"{run}-{FINETUNE}d"}, where=f"init = {FINETUNE}")


def superseded(given: Collection[str]) -> set[str]:
    """The settings of an earlier recipe that are void because of those given now."""
    return {other for name, other in INSTEAD_OF.items() if name in given and other not in given}


def recipe_path(name_or_path: str, folder: Path = Path()) -> Path:
    """The file of a recipe, which may lie in the folder; an unknown name is a `ConfigError` that names the nearest."""
    name = RECIPES.get(name_or_path.removesuffix(".py").removeprefix("config/"), name_or_path)
    if name in recipe_names():
        return Path(str(resources.files("quillgpt.recipes").joinpath(f"{name}.toml")))
    path = folder / name
    if path.suffix == ".toml":
        return path
    try:
        if name and (path / "config.toml").is_file():
            return path / "config.toml"
    except (OSError, ValueError):  # no possible name of a file
        pass
    names = recipe_names()
    raise ConfigError(
        f"no recipe {shown(name_or_path)}{nearest(name, names)}; recipes are {', '.join(names)}, or a .toml file"
    )


def recipe_names() -> list[str]:
    """The recipes in the package."""
    folder = resources.files("quillgpt.recipes")
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a recipe file, flat; tables only group them."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: not a file; a recipe is a .toml file, or a run's directory")
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise ConfigError(f"{path}: too large for a recipe ({path.stat().st_size:,} bytes)")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested without end
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    settings: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) and name not in GROUPS:
            table = f"unknown table [{name}]{nearest(name, GROUPS)}"
            raise ConfigError(f"{path}: {table}; tables are {', '.join(GROUPS)}")
        entries = value if isinstance(value, dict) else {name: value}
        if twice := settings.keys() & entries.keys():
            raise ConfigError(f"{path}: {min(twice)} is set twice; leave one of them")
        settings |= entries
    return settings


def _read(path: Path, extended_by: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    content = read_toml(path)
    settings: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if "extends" in content:
        base = content.pop("extends")
        if not isinstance(base, str):
            raise ConfigError(f"{path}: extends = {shown(base)} is not the name of a recipe")
        with _named(path, "extends"):
            base_path = recipe_path(base, folder=path.parent)
        chain = (*extended_by, path)
        if base_path.resolve() in [other.resolve() for other in chain]:
            raise ConfigError(f"{path}: extends {base_path}, which extends it; a recipe needs a beginning")
        settings, origins = _read(base_path, chain)
    own = _in_our_names(path, content)
    for void in superseded(own) & settings.keys():
        del settings[void], origins[void]
    return settings | own, origins | dict.fromkeys(own, f"recipe {path.stem}")


def _in_our_names(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    for theirs, value in content.items():
        with _named(path):
            ours = translate(theirs, value)
        if twice := own.keys() & ours.keys():
            raise ConfigError(f"{path}: {min(twice)} is set twice, once as {theirs}; leave one of them")
        own |= ours
    return own


@contextlib.contextmanager
def _named(*places: object) -> Iterator[None]:
    """Say where a wrong setting stands."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(": ".join([*map(str, places), str(error)])) from None
