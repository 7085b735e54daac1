"""Writes docs/settings.md from the code: `python tests/settings_page.py`. A test holds the committed page equal."""

from pathlib import Path

from quillgpt.config import GROUPS, RunConfig, flatten, group_of, meanings
from quillgpt.recipes import INSTEAD_OF
from quillgpt.recipes.aliases import ALIASES, BEGINNINGS, NO, RECIPES, SWITCHES, VALUES, YES

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

INTRODUCTION = """\
# Settings

*This page is written by `python tests/settings_page.py` from `src/quillgpt/config/` and
`src/quillgpt/recipes/aliases.py`; a test holds it equal to them.*

A run is made from settings. Each has one name, everywhere the same:

- in a recipe, a TOML file: `n_layer = 4`, under its table's name or anywhere above the tables;
- on the command line: `--n-layer 4`, `--n_layer=4`; a yes-or-no setting also as `--bias` or `--no-bias`;
- in Python: `quillgpt.load_recipe("debug", n_layer=4)`, or `quillgpt.ModelConfig(n_layer=4)`.

Later wins: the default below, then the recipe that `extends` names (a recipe, or a .toml file beside this one), then
the recipe, then the flags, of which the last of two equal ones counts. `quill train RECIPE --dry-run` shows every
setting with its value, where the value came from, and what follows from all of them. A name that does not exist, a
value of another type and a value that is not possible are errors of one line, before anything else happens. A run
keeps its settings in `config.toml`, which is a recipe again.
"""

CHANGES = """\
## Two ways to say one thing

A recipe or a flag that gives the first makes the second void where an earlier recipe gave it.
"""

OTHERS = """\
## nanoGPT's names

The commands of nanoGPT's README work after `python train.py config/X.py` is replaced by `quill train X`. Its names, and
two of OpenAI's and Hugging Face's, are accepted as flags and in recipes. As there, a step is
`batch_size * block_size * gradient_accumulation_steps` tokens over all GPUs unless `batch_tokens` is given.
`init_from = finetune`, which projects built on it have, starts from the run in `out_dir`, and writes to
OUT_DIR-finetuned.
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    defaults = flatten(RunConfig())
    for group, schema in GROUPS.items():
        rows = [
            (f"`{name}`", _code(defaults[name]), meanings()[name]) for name in defaults if group_of()[name] == group
        ]
        parts.append(f"## [{group}]\n\n{schema.__doc__}\n\n{_table(('setting', 'default', 'meaning'), rows)}")
    parts.append(CHANGES)
    parts.append(_table(("given", "void"), [(f"`{given}`", f"`{void}`") for given, void in INSTEAD_OF.items()]))
    parts.append(OTHERS)
    parts.append(_table(("theirs", "ours"), [(f"`{theirs}`", f"`{ours}`") for theirs, ours in ALIASES.items()]))
    parts.append("Some values have other names there:\n")
    values = [(f"`{name} = {value}`", _settings(ours)) for (name, value), ours in VALUES.items()]
    values += [(f"`{name} = {theirs}X`", f"`{name} = {ours}X`") for (name, theirs), ours in BEGINNINGS.items()]
    parts.append(_table(("theirs, with our name of the setting", "ours"), values))
    parts.append(f"These take {', '.join(YES)} or {', '.join(NO)}, and mean:\n")
    switches = [(f"`{name}`", _settings(yes), _settings(no)) for name, (yes, no) in SWITCHES.items()]
    parts.append(_table(("theirs", "true", "false"), switches))
    parts.append("Configuration files, with or without `config/` and `.py`:\n")
    parts.append(_table(("theirs", "recipe"), [(f"`config/{name}.py`", f"`{ours}`") for name, ours in RECIPES.items()]))
    return "\n".join(parts)


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _settings(settings: dict[str, object]) -> str:
    return ", ".join(f"`{name} = {_plain(value)}`" for name, value in settings.items()) or "as always"


def _code(value: object) -> str:
    return f"`{_plain(value)}`" if value != "" else ""


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
