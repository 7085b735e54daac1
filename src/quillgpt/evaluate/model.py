"""The model to evaluate, opened but not loaded, with the data it was trained on; the request and the runtime."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quillgpt.checkpoint import CONFIG, RUNTIME, STATE, Checkpoint, committed, find, to_source
from quillgpt.checkpoint.init_from import SCRATCH, data_settings, evaluation_tokens
from quillgpt.config import DataConfig, ModelConfig, RunConfig, updated
from quillgpt.data import load_data_tokenizer
from quillgpt.data.prepare import data_directory, prepare_command
from quillgpt.data.shards import MANIFEST, read_manifest
from quillgpt.data.sources import source_class
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, DataError
from quillgpt.evaluate.results import RuntimeRecord
from quillgpt.evaluate.tasks import TASK_DATA, Task
from quillgpt.evaluate.text import EvaluationData
from quillgpt.model.gpt import GPT
from quillgpt.pretrained import PUBLISHED, open_foreign
from quillgpt.pretrained.source import Source
from quillgpt.recipes import read_toml, recipe_config
from quillgpt.run_dir import RunDirectory
from quillgpt.runtime import Machine, Runtime, choose_device, choose_dtype, choose_threads
from quillgpt.tokenizer import Tokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT

logger = logging.getLogger(__name__)

EVALUATIONS = Path("evaluations")
BATCH_TOKENS = 8192  # small enough for any machine that can hold the model, large enough to keep a CPU busy


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The data that a model was trained on.

    places: directories where it may be. command: makes it. size_note: what that takes, if it is much. fingerprint: what
    the data must have, or "". eval_tokens: the most validation tokens in the evaluations of its training; 0: unknown.
    """

    places: tuple[Path, ...]
    command: str
    size_note: str = ""
    fingerprint: str = ""
    eval_tokens: int = 0

    def find(self, model: str) -> Path:
        """Return the directory of the data of a model; missing data or another fingerprint is a `DataError`."""
        found = next((place for place in self.places if (place / MANIFEST).is_file()), None)
        if found is None:
            remedy = f"`{self.command}` makes it{self.size_note}, or give other data or text with --data"
            raise DataError(f"{model}: its data is not in {self.places[0]}; {remedy}")
        got = read_manifest(found).fingerprint
        if self.fingerprint not in ("", got):
            differs = f"fingerprint {got[:12]}, was {self.fingerprint[:12]}"
            raise DataError(
                f"{model}: {found} is not the data it was trained on ({differs}), so it may have been trained on this "
                f"validation text; restore that data, or score this with --data {found}"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model to evaluate. source: None for the random weights that a run with this seed starts with.

    folder and file_name: where its results are written. runtime: that of its training run.
    """

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    file_name: str
    folder: Path = EVALUATIONS
    source: Source | None = None
    own_data: TrainingData | None = None
    step: int | None = None
    tokens: int | None = None
    seed: int = 0
    runtime: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights, or of what makes them."""
        if self.source is not None:
            return self.source.fingerprint
        return hashlib.sha256(f"untrained {self.seed} {self.config}".encode()).hexdigest()

    def data_directory(self) -> Path:
        """Return the directory of the data that the model was trained on."""
        if self.own_data is None:
            raise ConfigError(f"{self.name}: the data it was trained on is unknown; choose a text with --data")
        return self.own_data.find(self.name)

    def load(self, device: str) -> GPT:
        """Return the model with its weights, on the device, in evaluation mode."""
        if self.source is None:
            torch.manual_seed(self.seed)
            return GPT(self.config).to(device).eval()
        return self.source.load(self.config, device).eval()


def open_evaluated_model(where: str) -> EvaluatedModel:
    """Open the model that a name or path stands for, as `checkpoint.open_model` does."""
    source = open_foreign(where)
    return _of_checkpoint(where) if source is None else _of_source(source, _file_name(where, source))


def configured_model(config: RunConfig) -> EvaluatedModel:
    """Open the model of a run with these settings and its data: the best checkpoint, else what the run starts from."""
    has_checkpoint = bool(committed(RunDirectory(Path(config.train.out))))
    if not has_checkpoint and config.train.init == SCRATCH:
        return _untrained(config)
    evaluated = open_evaluated_model(config.train.out if has_checkpoint else config.train.init)
    assert evaluated.source is not None
    own_data = _data(data_settings(config, evaluated.source), config.model.vocab_size)
    if has_checkpoint:
        fingerprint = evaluated.own_data.fingerprint if evaluated.own_data is not None else ""
        return dataclasses.replace(evaluated, own_data=dataclasses.replace(own_data, fingerprint=fingerprint))
    shape = dataclasses.replace(config.model, vocab_size=evaluated.config.vocab_size)
    return dataclasses.replace(evaluated, config=shape, own_data=own_data)


def _of_checkpoint(where: str) -> EvaluatedModel:
    """A checkpoint, or the best of a run; its results are written to the run that it is in."""
    checkpoint = find(where, model_only=True)
    source, run = to_source(checkpoint), RunDirectory(checkpoint.path.parent.parent)
    is_in_run = checkpoint.path.parent == run.checkpoints and run.config.is_file()
    evaluated = _of_source(source, f"step-{checkpoint.step:06d}" if is_in_run else _file_name(where, source))
    return dataclasses.replace(
        evaluated,
        name=where,
        own_data=_data_of(checkpoint, run if is_in_run else None),
        folder=run.evaluations if is_in_run else EVALUATIONS,
        step=checkpoint.step,
        tokens=_read(checkpoint.path / STATE).get("tokens"),
        runtime=_read(checkpoint.path / RUNTIME),
    )


def _of_source(source: Source, file_name: str) -> EvaluatedModel:
    """A source; one with GPT-2's tokenizer is scored on the data of the published losses, that of gpt2-124m."""
    config = recipe_config("gpt2-124m")
    is_gpt2 = source.tokenizer_fingerprint == GPT2_FINGERPRINT
    return EvaluatedModel(
        name=source.name,
        config=source.config,
        source=source,
        tokenizer=source.tokenizer(),
        own_data=_data(config.data, config.model.vocab_size) if is_gpt2 else None,
        file_name=file_name,
    )


def _untrained(config: RunConfig) -> EvaluatedModel:
    """Random weights in the shape of the settings, and their data."""
    own_data = _data(config.data, config.model.vocab_size)
    name = f"{Path(config.train.out).name}-untrained"
    tokenizer = load_data_tokenizer(own_data.find(name))
    shape = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    return EvaluatedModel(
        name=name,
        config=shape,
        seed=config.train.seed,
        tokenizer=tokenizer,
        own_data=own_data,
        file_name=name,
    )


def _data_of(checkpoint: Checkpoint, run: RunDirectory | None) -> TrainingData:
    """The data of a checkpoint, in the directory that its run recorded, even if the folder of runs was moved."""
    path = checkpoint.path / CONFIG
    config = updated(RunConfig(), read_toml(path), where=str(path))
    settings = config.data
    if config.train.init != SCRATCH:
        settings = dataclasses.replace(settings, tokenizer=str(checkpoint.path))
    recorded = _read(run.environment).get("data", {}).get("directory", "") if run is not None else ""
    places = (Path(recorded), run.path.parent.parent / recorded) if run is not None and recorded else ()
    own_data = _data(settings, config.model.vocab_size, places)
    fingerprint, eval_tokens = checkpoint.manifest.data, evaluation_tokens(config)
    return dataclasses.replace(own_data, fingerprint=fingerprint, eval_tokens=eval_tokens)


def _data(settings: DataConfig, vocab_size: int, places: tuple[Path, ...] = ()) -> TrainingData:
    """The data of these settings, in one of the places or else where `quill prepare` writes it."""
    return TrainingData(
        places=places or (data_directory(settings, vocab_size),),
        command=prepare_command(settings, vocab_size),
        size_note=_size_note(settings),
    )


def _size_note(settings: DataConfig) -> str:
    """The size of the download, if it is large."""
    size = "" if settings.documents else source_class(settings).download_size(settings)
    return f" (it fetches {size})" if size else ""


def _file_name(where: str, source: Source) -> str:
    """A name for the files of results: that of the published model, or of the directory that a path names."""
    if source.name in PUBLISHED:
        return source.name
    path = Path(where).resolve()
    return path.parent.name if path.is_file() else path.name


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in an optional record; empty if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to evaluate of every model, and how. 0, "auto" and "": as in the model's run, or the default."""

    has_loss: bool = True
    tasks: tuple[tuple[Task, int], ...] = ()
    harness: tuple[str, ...] = ()
    limit: int = 0
    splits: tuple[str, ...] = ("val",)
    data: EvaluationData | None = None
    task_data: Path = TASK_DATA
    task_data_flag: str = "--data-dir"
    eval_tokens: int = 0
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    batch_size: int = 0
    batch_tokens: int = 0
    out: str = ""
    dist_backend: str = "auto"
    dist_timeout_seconds: int = 600


@dataclass(frozen=True, kw_only=True)
class EvaluationRuntime:
    """What a model is evaluated with. batch_size: windows in a pass. batch_tokens: tokens of task items in a pass."""

    device: str
    dtype: str
    threads: int
    matmul_precision: str
    batch_size: int
    batch_tokens: int


def runtime_record(runtime: Runtime | EvaluationRuntime) -> RuntimeRecord:
    """Return the part of a runtime that is stored with a result."""
    return RuntimeRecord(
        device=runtime.device, dtype=runtime.dtype, threads=runtime.threads, torch=str(torch.__version__)
    )


def evaluation_runtime(
    evaluated: EvaluatedModel, request: EvaluationRequest, machine: Machine, ranks: Ranks
) -> EvaluationRuntime:
    """Return the requested runtime; what is not requested is as in the model's run, if that had such a device."""
    device = choose_device(request.device, machine, ranks)[0]
    kind = device.partition(":")[0]
    is_same_kind = str(evaluated.runtime.get("device", "")).partition(":")[0] == kind
    trained_with = evaluated.runtime if is_same_kind else {}
    requested = str(trained_with.get("dtype", "fp32")) if request.dtype == "auto" else request.dtype
    dtype, reason = choose_dtype(requested, kind, machine)
    if dtype != requested:
        logger.info("dtype %s: %s", dtype, reason)
    length = evaluated.config.context_length
    tokens = request.batch_tokens or BATCH_TOKENS
    batch_size = request.batch_size or (0 if request.batch_tokens else int(trained_with.get("micro_batch_size", 0)))
    return EvaluationRuntime(
        device=device,
        dtype=dtype,
        threads=request.threads or int(trained_with.get("threads", 0)) or choose_threads(0, machine, ranks)[0],
        matmul_precision=str(trained_with.get("matmul_precision", "highest")),
        batch_size=batch_size or max(1, tokens // length),
        batch_tokens=request.batch_size * length if request.batch_size else tokens,
    )
