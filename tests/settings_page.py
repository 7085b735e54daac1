"""Writes docs/settings.md from the code: `python tests/settings_page.py`. A test compares the committed page."""

import textwrap
from collections.abc import Iterable
from pathlib import Path

from quillgpt.config import GROUPS, RunConfig, flatten, group_of, meanings
from quillgpt.recipes import INSTEAD_OF
from quillgpt.recipes.aliases import ALIASES, BEGINNINGS, NO, RECIPES, SWITCHES, VALUES, YES

WIDTH = 140
PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

INTRODUCTION = """\
# Settings

*This page is written by `python tests/settings_page.py` from `src/quillgpt/config.py` and
`src/quillgpt/recipes/aliases.py`; a test compares them.*

A setting has one name everywhere: in a recipe (`n_layer = 4` in TOML, below its table's name or above all tables), on
the command line (`--n-layer 4` or `--n_layer=4`; a switch also as `--bias` or `--no-bias`), and in Python
(`quillgpt.load_recipe("debug", n_layer=4)`).

Later values win: the default below, the recipe that `extends` names (or a .toml file next to this one), the recipe,
the flags. `quill train RECIPE --dry-run` shows every setting with its value, its origin, and what follows from all of
them. Unknown names and invalid values are errors of one line, before anything is trained. A run keeps its settings in
`config.toml`, which is a recipe again.
"""
CONFLICTS = """\
## Settings that exclude each other

A recipe or flag that gives the first removes the second where an earlier recipe gave it: {conflicts}.
"""
OTHER_NAMES = """\
## nanoGPT's names

The commands of nanoGPT's README work after `python train.py config/X.py` is replaced by `quill train X`. Its names,
and two of OpenAI's and Hugging Face's, are accepted as flags and in recipes. As there, a step is `batch_size *
block_size * gradient_accumulation_steps` tokens over all GPUs unless `batch_tokens` is given. `init_from = finetune`
starts from the run in `out_dir` and writes to OUT_DIR-finetuned.

- **Names**: {names}.
- **Values**, with our name of the setting: {values}.
- **Switches**, {yes} or {no}: {switches}.
- **Configuration files**, with or without `config/` and `.py`: {files}.
"""


def page() -> str:
    """The entire page."""
    parts = [INTRODUCTION]
    defaults = flatten(RunConfig())
    rows = []
    for group, schema in GROUPS.items():
        rows.append(("", f"**[{group}]**", f"**{(schema.__doc__ or '').partition('.')[0]}**"))
        rows += [
            (f"`{name}`", _code(defaults[name]), meanings()[name]) for name in defaults if group_of()[name] == group
        ]
    table = [("setting", "default", "meaning"), ("---",) * 3, *rows]
    parts.append("".join(f"| {' | '.join(cells)} |\n" for cells in table))
    parts.append(_wrapped(CONFLICTS.format(conflicts=_pairs(INSTEAD_OF.items()))))
    values = [(f"{name} = {value}", _settings(ours)) for (name, value), ours in VALUES.items()]
    values += [(f"{name} = {theirs}X", f"{name} = {ours}X") for (name, theirs), ours in BEGINNINGS.items()]
    switches = [
        f"`{name}` true: {_effect(is_true)}, false: {_effect(is_false)}"
        for name, (is_true, is_false) in SWITCHES.items()
    ]
    names = OTHER_NAMES.format(
        names=_pairs(ALIASES.items()),
        values=_pairs(values),
        yes=", ".join(YES),
        no=", ".join(NO),
        switches="; ".join(switches),
        files=_pairs(RECIPES.items()),
    )
    parts.append(_wrapped(names))
    return "\n".join(parts)


def _wrapped(text: str) -> str:
    lines = []
    for line in text.splitlines():
        indent = "  " if line.startswith("- ") else ""
        lines += textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [""]
    return "\n".join(lines) + "\n"


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"`{theirs}` → `{ours}`" for theirs, ours in pairs)


def _effect(settings: dict[str, object]) -> str:
    return f"`{_settings(settings)}`" if settings else "no effect"


def _settings(settings: dict[str, object]) -> str:
    return ", ".join(f"{name} = {_plain(value)}" for name, value in settings.items())


def _code(value: object) -> str:
    return f"`{_plain(value)}`" if value != "" else ""


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
