"""A run on disk: its paths, its settings as a file, and its metrics.

runs/NAME/ has config.toml, environment.json, metrics.jsonl, checkpoints/step-000400/, samples/ and evaluations/.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

import tomli_w

from quillgpt import files, records
from quillgpt.config import GROUPS, RunConfig
from quillgpt.errors import CheckpointError, DiskError

logger = logging.getLogger(__name__)

RUNS = Path("runs")


class RunDirectory:
    """The paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.evaluations = path / "evaluations"


def config_toml(config: RunConfig) -> str:
    """Return the settings as a recipe file; without `out`, so that training by it makes another run."""
    tables = {group: dataclasses.asdict(getattr(config, group)) for group in GROUPS}
    del tables["train"]["out"]
    return tomli_w.dumps(tables)


def runs_in(runs: Path = RUNS) -> set[Path]:
    """The runs in a directory that have a checkpoint; one that cannot be looked into is left out with a warning."""
    return {run for run in map(runs.joinpath, _names_in(runs)) if _has_checkpoint(run / "checkpoints")}


def _has_checkpoint(checkpoints: Path) -> bool:
    names = [name for name in _names_in(checkpoints) if not name.startswith(".")]
    return any(name.startswith("step-") or os.path.lexists(checkpoints / name / "manifest.json") for name in names)


def _names_in(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        logger.warning("%s; it is left out", records.unreadable(directory, error, CheckpointError))
        return []


def newest_run(runs: Path = RUNS) -> Path:
    """The run that saved a checkpoint last; a `CheckpointError` says how to make one."""
    candidates = runs_in(runs)
    if not candidates:
        raise CheckpointError(f"no run in {runs}/; train one first, for example `quill train python --minutes 2`")
    return max(candidates, key=lambda path: (path / "checkpoints").stat().st_mtime)


def append_metrics(path: Path, line: Mapping[str, object]) -> bool:
    """Append one line of metrics; non-finite numbers become strings. Return False if the line cannot be written."""
    content = {key: _as_json(value) for key, value in line.items()}
    try:
        files.append_line(path, json.dumps(content, allow_nan=False))
    except DiskError:
        return False
    return True


def _as_json(value: object) -> object:
    if isinstance(value, list):
        return [_as_json(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, object]]:
    """All complete lines of a metrics file, in order; [] without a file. One that cannot be read is an error."""
    lines = []
    try:
        with records.open_regular(path, CheckpointError) as file:
            content = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise records.unreadable(path, error, CheckpointError) from None
    for line in content.split("\n"):
        with contextlib.suppress(ValueError, RecursionError):  # an incomplete line
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def cut_metrics(path: Path, step: int) -> None:
    """Delete the lines after a step, so that a resumed run has every step once."""
    kept = [line for line in read_metrics(path) if isinstance(line.get("step"), int) and int(str(line["step"])) <= step]
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
