"""Find, verify and read checkpoints; `open_model` opens every model that a command can name.

checkpoints/step-000400/ holds manifest.json, config.toml, runtime.json, state.json, model.safetensors,
optimizer.safetensors and tokenizer.json: safetensors and JSON only, nothing that can run code when it is read. The
manifest has the size and SHA-256 of the others and of itself, because none of the formats detects a flipped bit. A LoRA
run has adapter.safetensors instead of model.safetensors; its manifest names the base model, which is not copied.

A checkpoint that exists and cannot be used, be it damaged or unreadable, is reported and never taken for absent.

The package contains one small checkpoint, `quill-python`, with bf16 weights and only the files that make a model;
benchmarks/bundled_model.py made it.
"""

import functools
import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from quillgpt import records
from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError, ConfigError, nearest, require
from quillgpt.model.gpt import GPT
from quillgpt.pretrained import PUBLISHED, open_foreign
from quillgpt.pretrained.adapter import Adapter, adapted, find_base
from quillgpt.pretrained.source import Source, Weights, load_model_from
from quillgpt.pretrained.tensor_files import SafetensorsFiles
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

FORMAT, SCHEMA = "quillgpt checkpoint", 1
MANIFEST = "manifest.json"
STEP_NAME = re.compile(r"step-(\d+)")
REMEDY = "use another checkpoint of the run"
MODEL, ADAPTER, OPTIMIZER = "model.safetensors", "adapter.safetensors", "optimizer.safetensors"
CONFIG, RUNTIME, STATE, TOKENIZER = "config.toml", "runtime.json", "state.json", "tokenizer.json"

BUNDLED_MODEL = "quill-python"
DIRECTORY = Path(__file__).parents[1] / "bundled" / BUNDLED_MODEL


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size in bytes and SHA-256 (hex) of one file of a checkpoint."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """What a checkpoint contains. tokenizer, data: fingerprints. val_loss: nats per token; None: not evaluated.

    adapter: settings and base of a LoRA run's adapters; None for a checkpoint of all weights.
    """

    format: str = FORMAT
    schema: int = SCHEMA
    step: int
    val_loss: float | None
    model: ModelConfig
    tokenizer: str
    data: str
    torch: str
    files: dict[str, FileRecord]
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        require("format", self.format, self.format == FORMAT, FORMAT)
        require("step", self.step, self.step >= 0, ">= 0")
        for name in (TOKENIZER, self.weights_file):
            require("files", list(self.files), name in self.files, f"with {name}")
        for name in self.files:
            require("files", name, Path(name).name == name, "the name of a file in the checkpoint")

    @property
    def weights_file(self) -> str:
        """The file of the trained tensors: all weights, or the adapters of a LoRA run."""
        return MODEL if self.adapter is None else ADAPTER


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint: its directory and its manifest, whose step counts, whatever the directory's name says."""

    path: Path
    manifest: CheckpointManifest

    @property
    def step(self) -> int:
        """Optimizer steps that its weights have had."""
        return self.manifest.step

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the JSON files."""
        try:
            return records.read_json(self.path / name, error=CheckpointError, remedy=REMEDY)
        except FileNotFoundError:
            raise CheckpointError(f"{self.path / name}: missing; {REMEDY}") from None

    def tensors(self, name: str, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Read one of the tensor files into memory: on a mapped file that is cut short, a process dies of SIGBUS."""
        try:
            tensors = safetensors.torch.load_file(self.path / name, device=device)
            return {key: tensor.clone() for key, tensor in tensors.items()}
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path / name}: not readable: {error}") from None


def scan(run: RunDirectory) -> tuple[list[Checkpoint], dict[Path, CheckpointError]]:
    """Return the run's checkpoints with a readable manifest, oldest first, and the error of each other one.

    The files that a manifest names are not checked. A directory counts that has the name of a checkpoint or a manifest.
    """
    readable, unreadable = [], {}
    for path in _candidates(run.checkpoints):
        try:
            readable.append(read_checkpoint(path))
        except CheckpointError as error:
            unreadable[path] = error
    return sorted(readable, key=lambda found: (found.step, found.path.name)), unreadable


def _candidates(directory: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise records.unreadable(directory, error, CheckpointError) from None
    paths = [directory / name for name in names if not name.startswith(".")]
    return [path for path in paths if STEP_NAME.fullmatch(path.name) or os.path.lexists(path / MANIFEST)]


def committed(run: RunDirectory) -> list[Checkpoint]:
    """Return the run's checkpoints with a readable manifest, oldest first; warn of each other one."""
    readable, unreadable = scan(run)
    for error in unreadable.values():
        logger.warning("%s", error)
    return readable


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the manifest of a checkpoint; a missing, damaged or newer one is a `CheckpointError`."""
    file = path / MANIFEST
    try:
        content = records.read_json(file, error=CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not a checkpoint: it has no {MANIFEST}") from None
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckpointError(f"{path}: from a newer quillgpt (schema {schema}, this one reads {SCHEMA}); update it")
    content = records.check_seal(content, file, error=CheckpointError)
    manifest = records.convert(content, CheckpointManifest, file, error=CheckpointError)
    return Checkpoint(path=path, manifest=manifest)


def verify(checkpoint: Checkpoint, *, model_only: bool = False) -> None:
    """Compare every file with the manifest; the first missing or changed one is a `CheckpointError`.

    model_only: check only the weights and the tokenizer.
    """
    manifest = checkpoint.manifest
    for name in (manifest.weights_file, TOKENIZER) if model_only else manifest.files:
        expected, path = manifest.files[name], checkpoint.path / name
        try:
            with records.open_regular(path, CheckpointError) as file:
                size = os.fstat(file.fileno()).st_size
                if size != expected.size:
                    raise CheckpointError(f"{path}: damaged: {size} bytes, the manifest says {expected.size}")
                if hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:
                    raise CheckpointError(f"{path}: damaged: its content differs from the manifest's SHA-256")
        except FileNotFoundError:
            raise CheckpointError(f"{path}: missing") from None
        except OSError as error:
            raise records.unreadable(path, error, CheckpointError) from None


def damage(checkpoint: Checkpoint) -> CheckpointError | None:
    """Return what `verify` finds; files that did not change since they were verified are not read again."""
    try:
        stats = [(checkpoint.path / name).stat() for name in checkpoint.manifest.files]
    except OSError:
        stats = []  # `verify` says what is wrong
    try:
        _verify_once(checkpoint.path, tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats))
    except CheckpointError as error:
        return error
    return None


@functools.lru_cache(maxsize=64)
def _verify_once(path: Path, stats: tuple[tuple[int, ...], ...]) -> None:
    verify(read_checkpoint(path))


def latest_intact(run: RunDirectory) -> Checkpoint | None:
    """Return the newest checkpoint, with all files intact; None if the run has none.

    A newest one that cannot be used is a `CheckpointError` that names an older intact one: to continue from that is the
    user's decision. Of an older one that cannot be read it warns.
    """
    readable, unreadable = scan(run)
    newest = readable[-1] if readable else None
    for path, error in unreadable.items():
        number = STEP_NAME.fullmatch(path.name)
        if newest is None or number is None or int(number[1]) >= newest.step:
            raise _with_ways_out(run, path, error, readable)
        logger.warning("%s", error)
    if newest is not None:
        try:
            verify(newest)
        except CheckpointError as error:
            raise _with_ways_out(run, newest.path, error, readable[:-1]) from None
    return newest


def _with_ways_out(run: RunDirectory, path: Path, error: CheckpointError, older: list[Checkpoint]) -> CheckpointError:
    intact = next((found for found in reversed(older) if damage(found) is None), None)
    remedy = "restore it"
    if intact is not None:
        remedy = f"restore it, or move {path} out of {run.checkpoints} to continue from the intact step {intact.step:,}"
    return CheckpointError(f"{error}; {remedy}, or choose another --out for a new run")


def best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint with the lowest validation loss; None if none was evaluated."""
    evaluated = [checkpoint for checkpoint in checkpoints if checkpoint.manifest.val_loss is not None]
    return min(evaluated, key=lambda checkpoint: checkpoint.manifest.val_loss or 0.0, default=None)


def find(where: str | Path, *, model_only: bool = False) -> Checkpoint:
    """Return the intact checkpoint in a directory: itself, or a run's best (the newest if none was evaluated).

    where: also the name of the bundled model. model_only: as in `verify`.
    """
    path = Path(_resolved(where))
    if os.path.lexists(path / MANIFEST):
        checkpoint = read_checkpoint(path)
        verify(checkpoint, model_only=model_only)
        return checkpoint
    if not path.is_dir():
        known = f"runs are under runs/, published models are {', '.join(PUBLISHED)}, with quill comes {BUNDLED_MODEL}"
        hint = nearest(str(where), [*PUBLISHED, BUNDLED_MODEL])
        raise CheckpointError(f"{path}: no such run or checkpoint directory{hint}; {known}")
    checkpoints, unreadable = scan(RunDirectory(path))
    problems = list(unreadable.values())
    while checkpoints:
        candidate = best(checkpoints) or checkpoints[-1]
        try:
            verify(candidate, model_only=model_only)
        except CheckpointError as error:
            problems.append(error)
            checkpoints.remove(candidate)
            continue
        for problem in problems:
            logger.warning("%s; using step %s", problem, f"{candidate.step:,}")
        return candidate
    if problems:
        raise CheckpointError(f"{path}: no intact checkpoint in it: {problems[-1]}")
    raise CheckpointError(f"{path}: no checkpoint in it; `quill train` makes one")


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
    path, manifest = checkpoint.path, checkpoint.manifest
    adapter = manifest.adapter
    source = Source(
        name=str(path),
        config=manifest.model,
        tokenizer_name=str(path / TOKENIZER),
        known_fingerprint=manifest.files[manifest.weights_file].sha256,
        known_tokenizer_fingerprint=manifest.tokenizer,
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
