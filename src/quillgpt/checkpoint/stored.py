"""Checkpoints: a directory that appears by one rename, every file hashed, the manifest written last.

checkpoints/step-000400/ holds manifest.json, config.toml, resolved.json, state.json, model.safetensors,
optimizer.safetensors and tokenizer.json: safetensors and JSON only, nothing that can run code when it is read. The
manifest has the size and SHA-256 of the others, because none of the formats notices a flipped bit by itself.

A LoRA run has adapter.safetensors instead of model.safetensors; its manifest names the base, which is not copied.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from quillgpt import files
from quillgpt.checkpoint.in_the_box import IN_THE_BOX
from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError, ConfigError, nearest
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import adapter_tensors
from quillgpt.pretrained import PUBLISHED
from quillgpt.pretrained.adapted import Adapter, merged_fingerprint
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import Tokenizer

SCHEMA = 1
MANIFEST = "manifest.json"
MODEL, OPTIMIZER, STATE, RESOLVED, CONFIG = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "resolved.json",
    "config.toml",
)
TOKENIZER = "tokenizer.json"
ADAPTER = "adapter.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint: its directory and its manifest. The step is the manifest's, whatever the name says."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.manifest["step"]

    @property
    def adapter(self) -> Adapter | None:
        """What the adapters of a LoRA run are and belong to; None for a checkpoint of all weights."""
        return Adapter.read(self.manifest["adapter"]) if "adapter" in self.manifest else None

    @property
    def weights_file(self) -> str:
        """The file of what was trained: all weights, or the adapters of a LoRA run."""
        return ADAPTER if "adapter" in self.manifest else MODEL

    @property
    def held_out_loss(self) -> float | None:
        """Held-out loss of these weights in nats per token, if they were evaluated."""
        return self.manifest["held_out_loss"]

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the JSON files."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def tensors(self, name: str, device: str = "cpu") -> dict[str, torch.Tensor]:
        """One of the tensor files."""
        try:
            return safetensors.torch.load_file(self.path / name, device=device)
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path / name}: not readable: {error}") from None


def save(
    run: RunDirectory,
    *,
    step: int,
    model: GPT,
    optimizer_state: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    resolved: Mapping[str, Any],
    config_toml: str,
    tokenizer: Tokenizer,
    data_fingerprint: str,
    held_out_loss: float | None,
    adapter: Adapter | None = None,
) -> Checkpoint:
    """Write a checkpoint of the step and return it; until it is complete nothing of it is visible.

    Of a model with adapters only these are written, and from `adapter` what they are and belong to.
    """
    path = run.checkpoints / f"step-{step:06d}"
    if path.exists():
        files.remove_directory(path)
    weights_file = MODEL if adapter is None else ADAPTER
    contents = {
        CONFIG: lambda: config_toml.encode(),
        RESOLVED: lambda: _json(resolved),
        STATE: lambda: _json(state),
        TOKENIZER: lambda: tokenizer.to_json().encode(),
        weights_file: lambda: _weights_content(model, adapter),
        OPTIMIZER: lambda: safetensors.torch.save(_on_cpu(optimizer_state)),
    }
    with files.atomic_directory(path) as temporary:
        written = {}
        for name, content in contents.items():
            with files.written_file(temporary / name) as file:
                file.write(content())
            written[name] = {"size": file.size, "sha256": file.sha256}
        manifest = {
            "format": "quillgpt checkpoint",
            "schema": SCHEMA,
            "step": step,
            "held_out_loss": held_out_loss,
            "model": dataclasses.asdict(model.config),
            "tokenizer": tokenizer.fingerprint,
            "data": data_fingerprint,
            "torch": torch.__version__,
            "files": written,
        }
        if adapter is not None:
            manifest["adapter"] = adapter.entry(path)
        with files.written_file(temporary / MANIFEST) as file:
            file.write(_json(manifest))
    return Checkpoint(path=path, manifest=manifest)


def fingerprint_of(model: GPT, adapter: Adapter | None = None) -> str:
    """The fingerprint that these weights have once they are saved, as `Source.fingerprint` tells it."""
    file_sha256 = hashlib.sha256(_weights_content(model, adapter)).hexdigest()
    return file_sha256 if adapter is None else merged_fingerprint(adapter, file_sha256)


def model_tensors(model: GPT) -> dict[str, torch.Tensor]:
    """The weights as they go into a file: a tied weight once, no wrapper's prefix, because the inner model is asked."""
    return dict(model.state_dict())


def committed(run: RunDirectory) -> list[Checkpoint]:
    """The run's checkpoints that have a readable manifest, oldest first; their contents are not checked yet."""
    found = []
    for path in run.checkpoints.glob(f"*/{MANIFEST}"):
        if not path.parent.name.startswith(files.TEMPORARY_PREFIX):
            try:
                found.append(read_checkpoint(path.parent))
            except CheckpointError:
                continue
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a directory; a missing, torn or newer manifest is a `CheckpointError`."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        schema, _ = manifest["schema"], manifest["step"] + 0
        for name in (TOKENIZER, ADAPTER if "adapter" in manifest else MODEL):
            _ = manifest["files"][name]["sha256"]
        ModelConfig(**manifest["model"])
        if "adapter" in manifest:
            Adapter.read(manifest["adapter"])
    except OSError as error:
        raise CheckpointError(f"{path}: no checkpoint: {MANIFEST}: {error.strerror}") from None
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(f"{path / MANIFEST}: damaged; use another checkpoint of the run") from None
    if schema > SCHEMA:
        raise CheckpointError(
            f"{path}: written by a newer quillgpt (schema {schema}, this one reads {SCHEMA}); update it"
        )
    return Checkpoint(path=path, manifest=manifest)


def verify(checkpoint: Checkpoint, *, model_only: bool = False) -> None:
    """Compare every file with the manifest; the first that is missing, short or changed is a `CheckpointError`.

    With `model_only` only what makes a model, its weights and its tokenizer, is read and has to be intact.
    """
    names = (checkpoint.weights_file, TOKENIZER) if model_only else checkpoint.manifest["files"]
    for name in names:
        expected = checkpoint.manifest["files"][name]
        path = checkpoint.path / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != expected["size"]:
            raise CheckpointError(f"{path}: damaged: {path.stat().st_size} bytes, the manifest says {expected['size']}")
        if files.file_sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path}: damaged: its content differs from the manifest's SHA-256")


def newest_intact(run: RunDirectory, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose files are all intact; each damaged newer one is said and passed over."""
    for checkpoint in reversed(committed(run)):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            say(f"{error}; using the checkpoint before it")
            continue
        return checkpoint
    return None


def best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest held-out loss."""
    evaluated = [checkpoint for checkpoint in checkpoints if checkpoint.held_out_loss is not None]
    return min(evaluated, key=lambda checkpoint: checkpoint.held_out_loss or 0.0, default=None)


def prune(run: RunDirectory, *, keep_last: int) -> None:
    """Delete all but the best and the last few; each disappears by one rename, so that no torn one looks whole."""
    checkpoints = committed(run)
    keep = {checkpoint.path for checkpoint in checkpoints[-keep_last:]}
    best_one = best(checkpoints)
    if best_one is not None:
        keep.add(best_one.path)
    for checkpoint in checkpoints:
        if checkpoint.path not in keep:
            files.remove_directory(checkpoint.path)


def find(where: str | Path, *, model_only: bool = False) -> Checkpoint:
    """The intact checkpoint a user means: that directory, or a run's best (its newest where none was evaluated).

    `model_only` is as in `verify`.
    """
    path = Path(where)
    if (path / MANIFEST).is_file():
        checkpoint = read_checkpoint(path)
        verify(checkpoint, model_only=model_only)
        return checkpoint
    if not path.is_dir():
        known = f"runs are under runs/, published models are {', '.join(PUBLISHED)}, with quill comes {IN_THE_BOX}"
        meant = nearest(str(where), [*PUBLISHED, IN_THE_BOX])
        raise CheckpointError(f"{path}: no such run or checkpoint directory{meant}; {known}")
    checkpoints = committed(RunDirectory(path))
    damage = ""
    while checkpoints:
        chosen = best(checkpoints) or checkpoints[-1]
        try:
            verify(chosen, model_only=model_only)
        except CheckpointError as error:
            damage = f" ({error})"
            checkpoints.remove(chosen)
            continue
        return chosen
    raise CheckpointError(f"{path}: no intact checkpoint in it{damage}; `quill train` makes one")


def _weights_content(model: GPT, adapter: Adapter | None) -> bytes:
    """The file of what was trained."""
    weights = model_tensors(model) if adapter is None else adapter_tensors(model)
    return safetensors.torch.save(_on_cpu(weights), metadata={"format": "pt"})


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
