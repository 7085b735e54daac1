"""The model that is evaluated: opened and named, not loaded yet, with the data it was trained on and its records."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quillgpt.checkpoint import CONFIG, RESOLVED, STATE, Checkpoint, as_source, committed, find
from quillgpt.checkpoint.in_the_box import place_of
from quillgpt.config import DataConfig, ModelConfig, RunConfig, updated
from quillgpt.data import load_data_tokenizer
from quillgpt.data.directory import data_directory, prepare_command
from quillgpt.data.manifest import MANIFEST, read_manifest
from quillgpt.data.sources.openwebtext import TEXT_BYTES, TOKENS
from quillgpt.errors import DataError
from quillgpt.model.gpt import GPT
from quillgpt.pretrained import PUBLISHED, open_foreign
from quillgpt.pretrained.source import Source, empty_model
from quillgpt.recipes import load_recipe, read_toml
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import Tokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT
from quillgpt.train.open_data import evaluation_tokens
from quillgpt.train.starting_point import SCRATCH, data_settings

EVALUATIONS = Path("evaluations")


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """Where the data is that a model was trained on: the places to look, how it is made, and what it must be.

    `eval_tokens`: how many held-out tokens the run's own evaluations score at most, where that is known.
    """

    places: tuple[Path, ...]
    command: str
    about: str = ""
    fingerprint: str = ""
    eval_tokens: int = 0

    def find(self, model: str) -> Path:
        """Its directory; data that is not there, or is not what the model was trained on, is a `DataError`."""
        found = [place for place in self.places if (place / MANIFEST).is_file()]
        if not found:
            remedy = f"`{self.command}` makes it{self.about}, or give other data or text with --data"
            raise DataError(f"{model}: its data is not in {self.places[0]}; {remedy}")
        got = read_manifest(found[0]).fingerprint
        if self.fingerprint not in ("", got):
            told = f"fingerprint {got[:12]}, was {self.fingerprint[:12]}"
            raise DataError(
                f"{model}: {found[0]} is not the data it was trained on ({told}), so that held-out text may have been "
                f"learned; bring that data back, or score it all the same with --data {found[0]}"
            )
        return found[0]


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """Random weights in place of a source: those that a run of this seed begins with."""

    seed: int
    config: ModelConfig

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what they are drawn by."""
        return hashlib.sha256(f"untrained {self.seed} {self.config}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to evaluate. `folder` and `file_name` say where its results go; `resolved` is what its run chose."""

    name: str
    config: ModelConfig
    source: Source | Untrained
    tokenizer: Tokenizer
    own_data: OwnData | None
    folder: Path
    file_name: str
    step: int | None = None
    tokens: int | None = None
    resolved: Mapping[str, Any] = field(default_factory=dict)

    def load(self, device: str) -> GPT:
        """The model with its weights, on the device, in evaluation mode."""
        if isinstance(self.source, Untrained):
            torch.manual_seed(self.source.seed)
            return GPT(self.config).to(device).eval()
        model = empty_model(self.config, device)
        self.source.load_into(model)
        return model.eval()


def open_subject(where: str) -> Subject:
    """The model a user names; anything that `open_model` knows."""
    source = open_foreign(where)
    return _of_checkpoint(where) if source is None else _of_source(source, _file_name(where, source))


def subject_of(config: RunConfig) -> Subject:
    """The model that a run of these settings has: of its best checkpoint, or what it starts from; with their data."""
    has_begun = bool(committed(RunDirectory(Path(config.train.out))))
    if not has_begun and config.train.init == SCRATCH:
        return _untrained(config)
    subject = open_subject(config.train.out if has_begun else config.train.init)
    assert isinstance(subject.source, Source)
    settings = data_settings(config, subject.source)
    own_data = _data_by(settings, config.model.vocab_size)
    if has_begun:
        known = subject.own_data.fingerprint if subject.own_data is not None else ""
        return dataclasses.replace(subject, own_data=dataclasses.replace(own_data, fingerprint=known))
    shape = dataclasses.replace(config.model, vocab_size=subject.config.vocab_size)
    return dataclasses.replace(subject, config=shape, own_data=own_data)


def _of_checkpoint(where: str) -> Subject:
    """A run's best checkpoint, or the one named; its results belong to the run that it lies in."""
    checkpoint = find(place_of(where), model_only=True)
    source = as_source(checkpoint)
    run = RunDirectory(checkpoint.path.parent.parent)
    is_in_run = checkpoint.path.parent == run.checkpoints and run.config.is_file()
    subject = _of_source(source, f"step-{checkpoint.step:06d}" if is_in_run else _file_name(where, source))
    return dataclasses.replace(
        subject,
        name=where,
        own_data=_data_of(checkpoint, source, run if is_in_run else None),
        folder=run.evaluations if is_in_run else EVALUATIONS,
        step=checkpoint.step,
        tokens=_read(checkpoint.path / STATE).get("tokens"),
        resolved=_read(checkpoint.path / RESOLVED),
    )


def _of_source(source: Source, file_name: str) -> Subject:
    return Subject(
        name=source.name,
        config=source.config,
        source=source,
        tokenizer=source.tokenizer(),
        own_data=_open_web_text() if source.tokenizer_fingerprint == GPT2_FINGERPRINT else None,
        folder=EVALUATIONS,
        file_name=file_name,
    )


def _untrained(config: RunConfig) -> Subject:
    """Random weights in the shape of the settings, for their data."""
    own_data = _data_by(config.data, config.model.vocab_size)
    name = f"{Path(config.train.out).name}-untrained"
    tokenizer = load_data_tokenizer(own_data.find(name))
    shape = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    return Subject(
        name=name,
        config=shape,
        source=Untrained(seed=config.train.seed, config=shape),
        tokenizer=tokenizer,
        own_data=own_data,
        folder=EVALUATIONS,
        file_name=name,
    )


def _data_of(checkpoint: Checkpoint, source: Source, run: RunDirectory | None) -> OwnData:
    """The data a checkpoint was trained on, where its run says it is, also if the folder of runs was moved."""
    path = checkpoint.path / CONFIG
    config = updated(RunConfig(), read_toml(path), where=str(path))
    settings = config.data
    if config.train.init != SCRATCH:
        settings = dataclasses.replace(settings, tokenizer=str(checkpoint.path))
    recorded = _read(run.environment).get("data", {}).get("directory", "") if run is not None else ""
    if run is not None and recorded:
        places = (Path(recorded), run.path.parent.parent / recorded)
    else:
        places = (data_directory(settings, config.model.vocab_size),)
    command = prepare_command(settings, config.model.vocab_size)
    return OwnData(
        places=places,
        command=command,
        fingerprint=checkpoint.manifest["data"],
        eval_tokens=evaluation_tokens(config),
    )


def _open_web_text() -> OwnData:
    """The data of the published losses: that of the recipe gpt2-124m."""
    config = load_recipe("gpt2-124m")
    return _data_by(config.data, config.model.vocab_size)


def _data_by(settings: DataConfig, vocab_size: int) -> OwnData:
    """The data that these settings name."""
    return OwnData(
        places=(data_directory(settings, vocab_size),),
        command=prepare_command(settings, vocab_size),
        about=_size_told(settings),
    )


def _size_told(settings: DataConfig) -> str:
    """What the preparation takes where that is much."""
    if settings.source != "openwebtext" or settings.path or settings.documents:
        return ""
    return f" (it fetches {TEXT_BYTES / 1e9:.0f} GB of text, which become {2 * TOKENS / 1e9:.0f} GB of tokens)"


def _file_name(where: str, source: Source) -> str:
    """A name for the files of results: that of the model, or of the directory that a path means."""
    if source.name in PUBLISHED:
        return source.name
    path = Path(where).resolve()
    return path.parent.name if path.is_file() else path.name


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a record that is useful and not needed; empty where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
