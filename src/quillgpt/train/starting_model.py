"""The model that training begins with or goes on with: new, somebody's, its own; whole, or with adapters beside it."""

import torch

from quillgpt.checkpoint import ADAPTER, Checkpoint, as_source, base_of, open_model
from quillgpt.config import ModelConfig, RunConfig
from quillgpt.errors import CheckpointError
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import adapter_tensors, add_adapters
from quillgpt.pretrained.adapted import Adapter, adapter_of
from quillgpt.pretrained.source import Source, empty_model


def starting_model(
    config: RunConfig, shape: ModelConfig, device: str, source: Source | None, found: Checkpoint | None
) -> tuple[GPT, Adapter | None]:
    """The model on the device, and what to keep with its adapters where the run trains such.

    Its weights are those of the run's own checkpoint `found`, or of the `source` to start from, or new ones drawn from
    the seed. With LoRA the base is opened anew, and the adapters are the checkpoint's, or drawn from the seed.
    """
    if config.lora.lora_rank:
        return _with_adapters(config, shape, device, source, found)
    if found is not None:
        source = as_source(found)
    if source is None:
        torch.manual_seed(config.train.seed)
        return GPT(shape).to(device), None
    return _filled(shape, device, source), None


def _with_adapters(
    config: RunConfig, shape: ModelConfig, device: str, source: Source | None, found: Checkpoint | None
) -> tuple[GPT, Adapter]:
    base = source if found is None else _former_base(config, found)
    assert base is not None
    model = _filled(shape, device, base)
    torch.manual_seed(config.train.seed)
    add_adapters(model, config.lora)
    if found is not None:
        saved = found.tensors(ADAPTER)
        with torch.no_grad():
            for name, tensor in adapter_tensors(model).items():
                tensor.copy_(saved[name])
    return model, adapter_of(config.lora, base, init=config.train.init)


def _former_base(config: RunConfig, found: Checkpoint) -> Source:
    """The base of the run's adapters, or another place of the same weights if `init` was changed to one."""
    assert found.adapter is not None
    former = found.adapter.base
    if config.train.init == former.init:
        return base_of(found, found.adapter)
    base = open_model(config.train.init)
    if base.fingerprint != former.weights:
        asked = f"--init {config.train.init} has the weights {base.fingerprint[:12]}"
        theirs = f"its adapters belong to {former.weights[:12]} of {former.found}"
        raise CheckpointError(f"{found.path}: {asked}, but {theirs}; use that again, or another --out for a new run")
    return base


def _filled(shape: ModelConfig, device: str, source: Source) -> GPT:
    model = empty_model(shape, device)
    source.load_into(model)
    return model
