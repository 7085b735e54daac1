"""What `quill bench sample` measures: a model in the form in which `quill sample` would write with it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quillgpt.cli.bench_options import Command, Side, settings_of, split_flags
from quillgpt.cli.settings import Settings
from quillgpt.config import group_of
from quillgpt.errors import CheckpointError, ConfigError, nearest
from quillgpt.recipes import recipe_names
from quillgpt.recipes.aliases import RECIPES

if TYPE_CHECKING:
    from quillgpt.bench.sampling import Sampled
    from quillgpt.model.gpt import GPT

OF_SAMPLING = ("device", "dtype", "threads", "seed", "compile")
"""settings of the run that sampling has too"""


def sampled(command: Command, side: Side) -> "Sampled":
    """A model to sample: of a name as `quill sample` takes it, or random weights in a recipe's shape."""
    import torch

    from quillgpt.bench.random_tokens import VOCABULARIES
    from quillgpt.bench.sampling import Sampled
    from quillgpt.distributed import Ranks
    from quillgpt.hardware import detect
    from quillgpt.model.gpt import GPT
    from quillgpt.sample.prepare import check_request, prepared
    from quillgpt.train.resolve import DTYPES, choose_device, choose_dtype, choose_threads

    is_recipe = _names_recipe(side.subject)
    own, flags = split_flags(side.flags, {"quantize": str})  # no setting of a run, but one that sides can differ in
    quantize = own[-1].rpartition("=")[2] if own else command.options.quantize
    settings = settings_of(command, replace(side, subject=side.subject if is_recipe else "debug", flags=flags))
    _refuse_what_does_not_sample(side.subject, settings, is_recipe=is_recipe)
    config = settings.config
    machine = detect()
    device = choose_device(config.train.device, machine, Ranks())[0]
    asked = "fp32" if config.train.dtype == "auto" and device == "cpu" else config.train.dtype
    dtype = choose_dtype(asked, device.partition(":")[0], machine)[0]
    is_compiled = config.train.compile == "on"
    check_request(quantize, is_compiled, device.partition(":")[0])
    if is_recipe:
        vocab_size = VOCABULARIES.get(config.data.tokenizer, config.model.vocab_size)
        torch.manual_seed(config.train.seed)
        model = GPT(replace(config.model, vocab_size=vocab_size))
    else:
        model = _opened_model(side.subject)
    model = prepared(model.to(torch.device(device)), dtype=DTYPES[dtype], quantize=quantize, compile=is_compiled)
    threads = choose_threads(config.train.threads, machine, Ranks())[0]
    return Sampled(name=side.name, model=model, device=device, dtype=dtype, threads=threads, quantize=quantize)


def _names_recipe(word: str) -> bool:
    """Whether a word means a recipe and no model; a run's directory is the model."""
    return word in recipe_names() or word in RECIPES or word.endswith(".toml")


def _refuse_what_does_not_sample(subject: str, settings: Settings, *, is_recipe: bool) -> None:
    """Refuse flags that would change nothing: those of training, and the shape of a model that brings its own."""
    groups = group_of()
    shape = {name for name, group in groups.items() if group == "model"} | {"tokenizer"} if is_recipe else set()
    given = [name for name, origin in settings.origins.items() if origin.startswith("flag")]
    wrong = next((name for name in given if name not in shape and name not in OF_SAMPLING), "")
    if wrong:
        allowed = ", ".join(f"--{name}" for name in (*OF_SAMPLING, "quantize"))
        what = (
            "nothing is trained; there are the shape of the model"
            if is_recipe
            else f"{subject} is a model and no recipe"
        )
        joined = "and" if is_recipe else ", for which there are"
        raise ConfigError(f"--{wrong.replace('_', '-')}: {what}{' ' if is_recipe else ''}{joined} {allowed}")


def _opened_model(where: str) -> "GPT":
    """A model as `quill sample` opens it."""
    from quillgpt.checkpoint import load_model

    try:
        return load_model(where)[0]
    except CheckpointError as error:
        if Path(where).exists():
            raise
        meant = nearest(where, recipe_names())
        raise CheckpointError(f"{error}; nor is there a recipe of that name{meant}") from None
