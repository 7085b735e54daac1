"""From a recipe's name and flags to a run's settings, each with its origin."""

from dataclasses import dataclass

from quillgpt.cli.arguments import parse
from quillgpt.config import RunConfig, updated
from quillgpt.errors import ConfigError
from quillgpt.recipes import read_recipe, recipe_names, recipe_path
from quillgpt.recipes.aliases import translate


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A run's settings, the recipe they began from, and where each one that is not a default came from."""

    config: RunConfig
    recipe: str
    origins: dict[str, str]


def load_settings(arguments: list[str], *, prog: str = "quill train") -> Settings:
    """Settings from `[RECIPE] [--flag value ...]`: defaults, then the recipe, then the flags."""
    words = list(arguments)
    recipe = words.pop(0) if words and not words[0].startswith("-") else ""
    if not recipe and "--help" not in words and "-h" not in words:
        raise ConfigError(
            f"which recipe? `{prog} RECIPE ...`, where RECIPE is one of {', '.join(recipe_names())}, or a file"
        )
    settings, origins = read_recipe(recipe) if recipe else ({}, {})
    base = updated(RunConfig(), settings, where=f"recipe {recipe}")
    config, given = parse(
        RunConfig, words, prog=f"{prog} RECIPE", default=base, translate=translate, switches=["compile"]
    )
    origins |= {name: f"flag {flag}" for name, flag in given.items()}
    if config.train.out == "auto":
        config = updated(config, {"out": f"runs/{run_name(recipe)}"}, where="out")
        origins["out"] = "the recipe's name"
    return Settings(config=config, recipe=recipe, origins=origins)


def run_name(recipe: str) -> str:
    """The default name of a recipe's run; a run's own config.toml is repeated under a new name."""
    path = recipe_path(recipe)
    return f"{path.parent.name}-again" if path.name == "config.toml" else path.stem
