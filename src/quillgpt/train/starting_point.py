"""`init`: the model a run starts from gives its shape and its tokenizer."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quillgpt.checkpoint import Checkpoint, as_source, committed, open_model
from quillgpt.config import DataConfig, RunConfig, updated
from quillgpt.data.directory import data_directory
from quillgpt.data.manifest import read_manifest
from quillgpt.errors import ConfigError, DataError
from quillgpt.pretrained.source import NOT_OF_THE_WEIGHTS, Source
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import TOKENIZERS, load_tokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT

SCRATCH = "scratch"


def starting_point(config: RunConfig, found: Checkpoint | None = None) -> Source | None:
    """The model that gives shape and tokenizer; None for a run from scratch.

    That is the run's own checkpoint where it has one, so that what it started from need not be there any more.
    """
    if config.train.init == SCRATCH:
        return None
    return open_model(config.train.init) if found is None else as_source(found)


def begun(config: RunConfig) -> Checkpoint | None:
    """The newest checkpoint that is already in the run directory, its files not checked."""
    return next(reversed(committed(RunDirectory(Path(config.train.out)))), None)


def with_the_shape_of_init(config: RunConfig, origins: Mapping[str, str]) -> tuple[RunConfig, dict[str, str]]:
    """The settings with the shape of the model to start from, and their origins.

    It replaces what defaults and the recipe say; a flag that says otherwise is refused. Dropout, attention and a
    shorter context do not depend on the weights: there a flag or the recipe is followed, and else the source.
    """
    source = starting_point(config, begun(config))
    if source is None:
        return config, dict(origins)
    adopted = {}
    for name, theirs in dataclasses.asdict(source.config).items():
        ours, origin = getattr(config.model, name), origins.get(name, "default")
        if ours == theirs or (name in NOT_OF_THE_WEIGHTS and _is_kept(name, ours, theirs, origin)):
            continue
        if name == "context_length" and origin.startswith("flag") and source.config.position == "rotary":
            continue  # nothing is stored for a position
        if origin.startswith("flag"):
            raise ConfigError(f"{_told(name, ours)}: {source.name} has {theirs!r}; leave it out to start from it")
        adopted[name] = theirs
    if origins.get("tokenizer", "").startswith("flag"):
        _check_tokenizer(config.data.tokenizer, source)
    by_source = dict.fromkeys(adopted, f"init {config.train.init}")
    return updated(config, adopted, where=f"init {source.name}"), {**origins, **by_source}


def _is_kept(name: str, ours: Any, theirs: Any, origin: str) -> bool:
    if origin == "default":
        return name == "dropout"
    return name != "context_length" or ours < theirs


def _check_tokenizer(asked: str, source: Source) -> None:
    """Refuse a tokenizer that is asked for and not the source's, which the weights know alone."""
    if asked == source.tokenizer_name or _fingerprint_of(asked) == source.tokenizer_fingerprint:
        return
    is_gpt2 = source.tokenizer_fingerprint == GPT2_FINGERPRINT  # whose vocabulary need not be at hand
    kept = f"a run that starts from {source.name} keeps its tokenizer, {'gpt2' if is_gpt2 else source.tokenizer().name}"
    raise ConfigError(f"{_told('tokenizer', asked)}: {kept}; leave it out")


def _fingerprint_of(tokenizer: str) -> str | None:
    """The fingerprint of a tokenizer's name or path; None for one that learns, and so has no vocabulary yet."""
    if tokenizer in TOKENIZERS and TOKENIZERS[tokenizer].learns:
        return None
    return GPT2_FINGERPRINT if tokenizer == "gpt2" else load_tokenizer(tokenizer).fingerprint


def _told(name: str, value: Any) -> str:
    return f"--{name.replace('_', '-')} {value!r}"


def data_settings(config: RunConfig, source: Source | None) -> DataConfig:
    """The data settings, with the tokenizer of the model to start from.

    Where the text is prepared already under the name of the recipe's tokenizer or of a ready-made one, and that is the
    model's, it is not prepared again.
    """
    if source is None:
        return config.data
    if not source.tokenizer_name:
        source.open_tokenizer()  # tells what is missing
    for name in dict.fromkeys([config.data.tokenizer, *TOKENIZERS]) if config.data.data == "auto" else ():
        by_name = dataclasses.replace(config.data, tokenizer=name)
        if name in TOKENIZERS and _was_made_with(by_name, config.model.vocab_size, source):
            return by_name
    return dataclasses.replace(config.data, tokenizer=source.tokenizer_name)


def _was_made_with(settings: DataConfig, vocab_size: int, source: Source) -> bool:
    """Whether data of these settings lies prepared, cut by the source's tokenizer."""
    try:
        manifest = read_manifest(data_directory(settings, vocab_size))
    except DataError:  # none, not complete or damaged
        return False
    return manifest.tokenizer["fingerprint"] == source.tokenizer_fingerprint
