"""Find, verify and read checkpoints; `open_model` opens every model that a command can name.

checkpoints/step-000400/ holds manifest.json, config.toml, runtime.json, state.json, model.safetensors,
optimizer.safetensors and tokenizer.json: safetensors and JSON only, nothing that can run code when it is read. The
manifest has the size and SHA-256 of the others, because none of the formats detects a flipped bit by itself. A LoRA run
has adapter.safetensors instead of model.safetensors; its manifest names the base model, which is not copied.

The package contains one small checkpoint, `quill-python`, with bf16 weights and only the files that make a model;
benchmarks/bundled_model.py made it.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from quillgpt import files
from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError, ConfigError, nearest
from quillgpt.model.gpt import GPT
from quillgpt.pretrained import PUBLISHED, open_foreign
from quillgpt.pretrained.adapter import Adapter, adapted, find_base
from quillgpt.pretrained.source import Source, Weights, load_model_from
from quillgpt.pretrained.tensor_files import SafetensorsFiles
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

SCHEMA = 1
MANIFEST = "manifest.json"
MODEL, ADAPTER, OPTIMIZER = "model.safetensors", "adapter.safetensors", "optimizer.safetensors"
CONFIG, RUNTIME, STATE, TOKENIZER = "config.toml", "runtime.json", "state.json", "tokenizer.json"

BUNDLED_MODEL = "quill-python"
DIRECTORY = Path(__file__).parents[1] / "bundled" / BUNDLED_MODEL


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint: its directory and its manifest, whose step counts, whatever the directory's name says."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps that its weights have had."""
        return self.manifest["step"]

    @property
    def adapter(self) -> Adapter | None:
        """The settings and the base of a LoRA run's adapters; None for a checkpoint of all weights."""
        return Adapter.read(self.manifest["adapter"]) if "adapter" in self.manifest else None

    @property
    def weights_file(self) -> str:
        """The file of the trained tensors: all weights, or the adapters of a LoRA run."""
        return ADAPTER if "adapter" in self.manifest else MODEL

    @property
    def val_loss(self) -> float | None:
        """Validation loss of these weights in nats per token; None if they were not evaluated."""
        return self.manifest["val_loss"]

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the JSON files."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def tensors(self, name: str, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Read one of the tensor files."""
        try:
            return safetensors.torch.load_file(self.path / name, device=device)
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path / name}: not readable: {error}") from None


def committed(run: RunDirectory) -> list[Checkpoint]:
    """List the run's checkpoints that have a readable manifest, oldest first; the other files are not checked."""
    found = []
    for path in run.checkpoints.glob(f"*/{MANIFEST}"):
        if not path.parent.name.startswith(files.TEMPORARY_PREFIX):
            try:
                found.append(read_checkpoint(path.parent))
            except CheckpointError:
                continue
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the manifest of a checkpoint; a missing, damaged or newer one is a `CheckpointError`."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        schema, _ = manifest["schema"], manifest["step"] + 0
        for name in (TOKENIZER, ADAPTER if "adapter" in manifest else MODEL):
            _ = manifest["files"][name]["sha256"]
        ModelConfig(**manifest["model"])
        if "adapter" in manifest:
            Adapter.read(manifest["adapter"])
    except OSError as error:
        raise CheckpointError(f"{path}: not a checkpoint: {MANIFEST}: {error.strerror}") from None
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(f"{path / MANIFEST}: damaged; use another checkpoint of the run") from None
    if schema > SCHEMA:
        raise CheckpointError(f"{path}: from a newer quillgpt (schema {schema}, this one reads {SCHEMA}); update it")
    return Checkpoint(path=path, manifest=manifest)


def verify(checkpoint: Checkpoint, *, model_only: bool = False) -> None:
    """Compare every file with the manifest; the first missing or changed one is a `CheckpointError`.

    model_only: check only the weights and the tokenizer.
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


def newest_intact(run: RunDirectory) -> Checkpoint | None:
    """Return the newest checkpoint with all files intact; warn of each damaged one that is skipped."""
    for checkpoint in reversed(committed(run)):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            logger.warning("%s; using the checkpoint before it", error)
            continue
        return checkpoint
    return None


def best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint with the lowest validation loss; None if none was evaluated."""
    evaluated = [checkpoint for checkpoint in checkpoints if checkpoint.val_loss is not None]
    return min(evaluated, key=lambda checkpoint: checkpoint.val_loss or 0.0, default=None)


def find(where: str | Path, *, model_only: bool = False) -> Checkpoint:
    """Return the intact checkpoint in a directory: itself, or a run's best (the newest if none was evaluated).

    where: also the name of the bundled model. model_only: as in `verify`.
    """
    path = Path(_resolved(where))
    if (path / MANIFEST).is_file():
        checkpoint = read_checkpoint(path)
        verify(checkpoint, model_only=model_only)
        return checkpoint
    if not path.is_dir():
        known = f"runs are under runs/, published models are {', '.join(PUBLISHED)}, with quill comes {BUNDLED_MODEL}"
        hint = nearest(str(where), [*PUBLISHED, BUNDLED_MODEL])
        raise CheckpointError(f"{path}: no such run or checkpoint directory{hint}; {known}")
    checkpoints = committed(RunDirectory(path))
    damage = ""
    while checkpoints:
        candidate = best(checkpoints) or checkpoints[-1]
        try:
            verify(candidate, model_only=model_only)
            return candidate
        except CheckpointError as error:
            damage = f" ({error})"
            checkpoints.remove(candidate)
    raise CheckpointError(f"{path}: no intact checkpoint in it{damage}; `quill train` makes one")


def _resolved(where: str | Path) -> str | Path:
    """Return the directory of the bundled model for its name, anything else unchanged. A `Path` is never a name."""
    if where != BUNDLED_MODEL or isinstance(where, Path):
        return where
    if Path(where).exists():
        remedy = f"write ./{where} for that, or leave this directory"
        raise ConfigError(f"{where} is the bundled model and also something in this directory; {remedy}")
    return DIRECTORY


def open_model(where: str | Path) -> Source:
    """Open the model that a name or a path stands for; nothing is fetched, and no tensor read, before it is needed.

    where: a run or checkpoint directory; gpt2, gpt2-medium, gpt2-large or gpt2-xl: OpenAI's; quill-python: the bundled
    model; a Hugging Face directory; nanoGPT's ckpt.pt or its directory.
    """
    where = _resolved(where)
    return open_foreign(where) or to_source(find(where, model_only=True))


def to_source(checkpoint: Checkpoint) -> Source:
    """Return a checkpoint as a model to load; the adapters of a LoRA run are merged into their base."""
    path, adapter = checkpoint.path, checkpoint.adapter
    source = Source(
        name=str(path),
        config=ModelConfig(**checkpoint.manifest["model"]),
        tokenizer_name=str(path / TOKENIZER),
        known_fingerprint=checkpoint.manifest["files"][checkpoint.weights_file]["sha256"],
        known_tokenizer_fingerprint=checkpoint.manifest["tokenizer"],
        open_weights=lambda: Weights(stored=SafetensorsFiles([path / MODEL]), locate=lambda name: (name, False)),
        open_tokenizer=lambda: load_tokenizer(path / TOKENIZER),
    )
    if adapter is None:
        return source
    return adapted(
        source, adapter, lambda: find_base(adapter.base, path, open_model), lambda: checkpoint.tensors(ADAPTER)
    )


def load_model(where: str | Path, device: str = "cpu") -> tuple[GPT, Tokenizer]:
    """Load the model, in evaluation mode with fp32 weights, and the tokenizer of anything that `open_model` opens.

    A missing tokenizer is an error only when it is first used. docs/pretrained.md describes other projects' models.

    For example:
        model, tokenizer = quillgpt.load_model("runs/python")
        tokens = torch.tensor([tokenizer.encode("def main")])
        with torch.no_grad():
            logits = model(tokens)[0, -1]  # of the token after the text
        for token in logits.topk(3).indices.tolist():
            print(repr(tokenizer.decode([token])))
    """
    return load_model_from(open_model(where), device)
