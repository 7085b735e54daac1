"""The model in the box: small, trained by the recipe of the same name, and part of the package.

It is a checkpoint without what only training needs, its weights in bf16. benchmarks/model_in_the_box.py made it.
"""

from pathlib import Path

from quillgpt.errors import ConfigError

IN_THE_BOX = "quill-python"
DIRECTORY = Path(__file__).parents[1] / "in_the_box" / IN_THE_BOX


def place_of(where: str | Path) -> str | Path:
    """The directory of the model in the box for its name; anything else as it is. A `Path` is never a name."""
    if where != IN_THE_BOX or isinstance(where, Path):
        return where
    if Path(where).exists():
        remedy = f"write ./{where} for that, or leave this directory"
        raise ConfigError(f"{where} is the model in the box and also something in this directory; {remedy}")
    return DIRECTORY
