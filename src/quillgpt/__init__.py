"""quillgpt: train, resume, evaluate and sample GPT-2-class language models.

    import quillgpt

    config = quillgpt.load_recipe("debug", steps=50)     # a recipe's settings, some of them changed
    outcome = quillgpt.train(config)                     # prepares the data, trains, saves in runs/debug
    model, tokenizer = quillgpt.load_model(outcome.run)
    print(quillgpt.generate(model, tokenizer, "def", max_new_tokens=100)[0])

Names are imported when they are first used, so that `import quillgpt` is quick and needs no torch. What a user can
mend is a `quillgpt.errors.QuillError`, whose text is one line.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quillgpt.checkpoint import load_model as load_model
    from quillgpt.config import ModelConfig as ModelConfig
    from quillgpt.config import RunConfig as RunConfig
    from quillgpt.model.gpt import GPT as GPT
    from quillgpt.sample.generate import generate as generate
    from quillgpt.sample.prepare import prepared as prepared
    from quillgpt.tokenizer import load_tokenizer as load_tokenizer
    from quillgpt.train.recipe import load_recipe as load_recipe

PUBLIC = {
    "GPT": "quillgpt.model.gpt",
    "ModelConfig": "quillgpt.config",
    "RunConfig": "quillgpt.config",
    "generate": "quillgpt.sample.generate",
    "load_model": "quillgpt.checkpoint",
    "load_recipe": "quillgpt.train.recipe",
    "load_tokenizer": "quillgpt.tokenizer",
    "prepared": "quillgpt.sample.prepare",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for."""
    if name == "train":  # the folder, which is callable
        return importlib.import_module("quillgpt.train")
    if name not in PUBLIC:
        raise AttributeError(f"module 'quillgpt' has no attribute {name!r}; it has {', '.join(__dir__())}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*PUBLIC, "train"])
