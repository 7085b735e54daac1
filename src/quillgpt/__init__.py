"""quillgpt: train, resume, evaluate and sample GPT-2-class language models.

    import quillgpt

    config = quillgpt.load_recipe("debug", steps=50)     # the settings of a recipe, some of them changed
    outcome = quillgpt.train(config)                     # prepares the data, trains, saves in runs/debug
    model, tokenizer = quillgpt.load_model(outcome.run)
    print(quillgpt.generate(model, tokenizer, "def", max_new_tokens=100)[0])

Names are imported when they are first used, so `import quillgpt` is quick and does not load torch. An error that the
user can fix is a `quillgpt.errors.QuillError` with a message of one line. Messages of the library go to the logger
"quillgpt".
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quillgpt.checkpoint import load_model as load_model
    from quillgpt.config import ModelConfig as ModelConfig
    from quillgpt.config import RunConfig as RunConfig
    from quillgpt.model.gpt import GPT as GPT
    from quillgpt.sample.engine import generate as generate
    from quillgpt.sample.optimize import optimize_for_inference as optimize_for_inference
    from quillgpt.tokenizer import load_tokenizer as load_tokenizer
    from quillgpt.training import load_recipe as load_recipe
    from quillgpt.training.loop import train as train

PUBLIC = {
    "GPT": "quillgpt.model.gpt",
    "ModelConfig": "quillgpt.config",
    "RunConfig": "quillgpt.config",
    "generate": "quillgpt.sample.engine",
    "load_model": "quillgpt.checkpoint",
    "load_recipe": "quillgpt.training",
    "load_tokenizer": "quillgpt.tokenizer",
    "optimize_for_inference": "quillgpt.sample.optimize",
    "train": "quillgpt.training.loop",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'quillgpt' has no attribute {name!r}; it has {', '.join(__dir__())}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(PUBLIC)
