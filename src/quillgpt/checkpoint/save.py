"""Write checkpoints: each directory appears by one rename, with every file hashed and the manifest last."""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch

from quillgpt import files, records
from quillgpt.checkpoint.load import (
    ADAPTER,
    CONFIG,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    RUNTIME,
    STATE,
    TOKENIZER,
    Checkpoint,
    CheckpointManifest,
    FileRecord,
    best,
    damage,
    scan,
)
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import adapter_tensors
from quillgpt.pretrained.adapter import Adapter, merged_fingerprint
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def save(
    run: RunDirectory,
    *,
    step: int,
    model: GPT,
    optimizer_state: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    runtime: Mapping[str, Any],
    config_toml: str,
    tokenizer: Tokenizer,
    data_fingerprint: str,
    val_loss: float | None,
    adapter: Adapter | None = None,
) -> Checkpoint:
    """Write the checkpoint of a step and return it; nothing of it is visible until it is complete.

    adapter: settings and base of a LoRA run, of which only the adapters are written, not the base's weights.
    """
    path = run.checkpoints / f"step-{step:06d}"
    contents = {
        CONFIG: lambda: config_toml.encode(),
        RUNTIME: lambda: _json(runtime),
        STATE: lambda: _json(state),
        TOKENIZER: lambda: tokenizer.to_json().encode(),
        MODEL if adapter is None else ADAPTER: lambda: _weights_content(model, adapter),
        OPTIMIZER: lambda: safetensors.torch.save(_on_cpu(optimizer_state)),
    }
    with files.atomic_directory(path, replaces=True) as temporary:
        written = {}
        for name, content in contents.items():
            with files.written_file(temporary / name) as file:
                file.write(content())
            written[name] = FileRecord(size=file.size, sha256=file.sha256)
        manifest = CheckpointManifest(
            step=step,
            val_loss=val_loss,
            model=model.config,
            tokenizer=tokenizer.fingerprint,
            data=data_fingerprint,
            torch=str(torch.__version__),
            files=written,
            adapter=adapter.for_checkpoint(path) if adapter is not None else None,
        )
        with files.written_file(temporary / MANIFEST) as file:
            file.write(_json(records.seal(dataclasses.asdict(manifest))))
    return Checkpoint(path=path, manifest=manifest)


def weights_fingerprint(model: GPT, adapter: Adapter | None = None) -> str:
    """Return the `Source.fingerprint` that these weights have once they are saved."""
    file_sha256 = hashlib.sha256(_weights_content(model, adapter)).hexdigest()
    return file_sha256 if adapter is None else merged_fingerprint(adapter, file_sha256)


def prune(run: RunDirectory, *, keep_last: int) -> None:
    """Delete all but the best and the last `keep_last`; each disappears by one rename, so none looks complete.

    Only intact checkpoints count as kept, and only intact ones are deleted; a damaged one is the user's to decide on.
    """
    intact = []
    for checkpoint in scan(run)[0]:
        if error := damage(checkpoint):
            _warn_once(f"{error}; it is not deleted and does not count as kept")
        else:
            intact.append(checkpoint)
    kept = {checkpoint.path for checkpoint in [*intact[-keep_last:], best(intact)] if checkpoint is not None}
    for checkpoint in intact:
        if checkpoint.path not in kept:
            files.remove_directory(checkpoint.path)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def _weights_content(model: GPT, adapter: Adapter | None) -> bytes:
    """The content of the file of the trained tensors; a tied weight is in it once."""
    weights = model.state_dict() if adapter is None else adapter_tensors(model)
    return safetensors.torch.save(_on_cpu(weights), metadata={"format": "pt"})


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
