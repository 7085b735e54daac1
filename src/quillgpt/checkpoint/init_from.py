"""The setting `init`: the model that a run starts from gives weights, shape and tokenizer."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quillgpt.checkpoint import ADAPTER, Checkpoint, committed, open_model, to_source
from quillgpt.config import DataConfig, ModelConfig, RunConfig, updated
from quillgpt.data.prepare import data_directory
from quillgpt.data.shards import read_manifest
from quillgpt.errors import CheckpointError, ConfigError, DataError
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import adapter_tensors, add_adapters
from quillgpt.model.positions import POSITIONS
from quillgpt.pretrained.adapter import Adapter, adapter_of, find_base
from quillgpt.pretrained.source import FREE_SETTINGS, Source
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import TOKENIZERS, load_tokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT

SCRATCH = "scratch"


def init_source(config: RunConfig, found: Checkpoint | None = None) -> Source | None:
    """Return the model that gives shape and tokenizer; None for a run from scratch.

    found: the run's own checkpoint; it takes the place of `init`, which may no longer exist.
    """
    if config.train.init == SCRATCH:
        return None
    return open_model(config.train.init) if found is None else to_source(found)


def latest_checkpoint(config: RunConfig) -> Checkpoint | None:
    """Return the newest checkpoint in the run directory, its files not checked; None if there is none."""
    return next(reversed(committed(RunDirectory(Path(config.train.out)))), None)


def with_init_shape(config: RunConfig, origins: Mapping[str, str]) -> tuple[RunConfig, dict[str, str]]:
    """Return the settings with the shape of the `init` model, and the origin of each setting.

    The shape replaces defaults and the recipe; a flag that differs is a `ConfigError`. Dropout, attention and a shorter
    context do not depend on the weights: for these, a flag or the recipe comes first.
    """
    source = init_source(config, latest_checkpoint(config))
    if source is None:
        return config, dict(origins)
    adopted = {}
    for name, theirs in dataclasses.asdict(source.config).items():
        ours, origin = getattr(config.model, name), origins.get(name, "default")
        if ours == theirs or (name in FREE_SETTINGS and _is_kept(name, ours, theirs, origin)):
            continue
        if name == "context_length" and origin.startswith("flag") and not POSITIONS[source.config.position].has_table:
            continue  # the weights hold nothing for a position
        if origin.startswith("flag"):
            raise ConfigError(f"{_flag(name, ours)}: {source.name} has {theirs!r}; leave it out to start from it")
        adopted[name] = theirs
    if origins.get("tokenizer", "").startswith("flag"):
        _check_tokenizer(config.data.tokenizer, source)
    by_source = dict.fromkeys(adopted, f"init {config.train.init}")
    return updated(config, adopted, where=f"init {source.name}"), {**origins, **by_source}


def _is_kept(name: str, ours: Any, theirs: Any, origin: str) -> bool:
    if origin == "default":
        return name == "dropout"
    return name != "context_length" or ours < theirs


def _check_tokenizer(requested: str, source: Source) -> None:
    """Refuse another tokenizer than the source's, the only one that its weights know."""
    if requested == source.tokenizer_name or _fingerprint(requested) == source.tokenizer_fingerprint:
        return
    is_gpt2 = source.tokenizer_fingerprint == GPT2_FINGERPRINT  # its vocabulary may be missing here
    kept = f"a run that starts from {source.name} keeps its tokenizer, {'gpt2' if is_gpt2 else source.tokenizer().name}"
    raise ConfigError(f"{_flag('tokenizer', requested)}: {kept}; leave it out")


def _fingerprint(tokenizer: str) -> str | None:
    """The fingerprint of a tokenizer's name or path; None for one that is still to be trained."""
    if tokenizer in TOKENIZERS and TOKENIZERS[tokenizer].learns:
        return None
    return GPT2_FINGERPRINT if tokenizer == "gpt2" else load_tokenizer(tokenizer).fingerprint


def _flag(name: str, value: Any) -> str:
    return f"--{name.replace('_', '-')} {value!r}"


def data_settings(config: RunConfig, source: Source | None) -> DataConfig:
    """Return the data settings with the tokenizer of the `init` model.

    Text that is already prepared with that tokenizer, under the name of the recipe's tokenizer or of one in the menu,
    is not prepared again.
    """
    if source is None:
        return config.data
    if not source.tokenizer_name:
        source.open_tokenizer()  # raises the error that says what is missing
    for name in dict.fromkeys([config.data.tokenizer, *TOKENIZERS]) if config.data.data == "auto" else ():
        by_name = dataclasses.replace(config.data, tokenizer=name)
        if name in TOKENIZERS and _is_prepared(by_name, config.model.vocab_size, source):
            return by_name
    return dataclasses.replace(config.data, tokenizer=source.tokenizer_name)


def _is_prepared(settings: DataConfig, vocab_size: int, source: Source) -> bool:
    """Whether prepared data of these settings exists, encoded with the source's tokenizer."""
    try:
        manifest = read_manifest(data_directory(settings, vocab_size))
    except DataError:  # missing, incomplete or damaged
        return False
    return manifest.tokenizer["fingerprint"] == source.tokenizer_fingerprint


def initial_model(
    config: RunConfig, shape: ModelConfig, device: str, source: Source | None, found: Checkpoint | None
) -> tuple[GPT, Adapter | None]:
    """Return the model on the device, and for a LoRA run the settings and base of its adapters.

    The weights are those of the run's own checkpoint `found`, else of the `init` model `source`, else random by the
    seed. A LoRA run opens its base again, with the adapters of the checkpoint, else random ones by the seed.
    """
    if config.lora.lora_rank:
        return _with_adapters(config, shape, device, source, found)
    source = source if found is None else to_source(found)
    if source is not None:
        return source.load(shape, device), None
    torch.manual_seed(config.train.seed)
    return GPT(shape).to(device), None


def _with_adapters(
    config: RunConfig, shape: ModelConfig, device: str, source: Source | None, found: Checkpoint | None
) -> tuple[GPT, Adapter]:
    base = source if found is None else _base_of(found, config.train.init)
    assert base is not None
    model = base.load(shape, device)
    torch.manual_seed(config.train.seed)
    add_adapters(model, config.lora)
    if found is not None:
        saved = found.tensors(ADAPTER)
        with torch.no_grad():
            for name, tensor in adapter_tensors(model).items():
                tensor.copy_(saved[name])
    return model, adapter_of(config.lora, base, init=config.train.init)


def _base_of(found: Checkpoint, init: str) -> Source:
    """Open the base of a checkpoint's adapters, or another copy of the same weights if `init` has changed."""
    assert found.manifest.adapter is not None
    base = found.manifest.adapter.base
    if init == base.init:
        return find_base(base, found.path, open_model)
    source = open_model(init)
    if source.fingerprint != base.weights:
        got = f"--init {init} has the weights {source.fingerprint[:12]}"
        expected = f"its adapters belong to {base.weights[:12]} of {base.found}"
        raise CheckpointError(f"{found.path}: {got}, but {expected}; use that again, or another --out for a new run")
    return source


def evaluation_tokens(config: RunConfig) -> int:
    """Return the most validation tokens of an evaluation; `eval_iters` counts batches, as in nanoGPT."""
    train = config.train
    if train.eval_iters:
        return train.eval_iters * max(1, train.batch_size) * config.model.context_length
    return train.eval_tokens
