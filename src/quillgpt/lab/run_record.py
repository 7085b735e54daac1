"""The records of a run: settings, environment, metrics and evaluations, of a finished run or one in training."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quillgpt.config import RunConfig, Scalar, flatten, updated
from quillgpt.errors import CheckpointError, nearest
from quillgpt.recipes import read_toml
from quillgpt.run_dir import RUNS, RunDirectory, read_metrics

BOOKKEEPING = {
    *("out", "fresh", "track", "track_project", "track_name"),  # where the records are
    *("log_every", "eval_every", "sample_every", "save_every", "keep_last"),  # how often they are made
    *("eval_only", "eval_tasks", "task_data"),  # what is evaluated
}
"""settings that change the records of a run, but not the training"""
NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
"""numbers that JSON does not have, as `append_metrics` writes them"""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The records of a run. `lines`: of metrics.jsonl. `evaluations`: the files of evaluations/, sorted by name."""

    path: Path
    config: RunConfig
    environment: Mapping[str, Any]
    lines: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.name

    @property
    def settings(self) -> dict[str, Scalar]:
        """Every setting by its name, as requested; without `out`, which is not stored with a run."""
        return {name: value for name, value in flatten(self.config).items() if name != "out"}

    @property
    def data_fingerprint(self) -> str:
        """Fingerprint of the data and its tokenizer; empty if the environment has none."""
        data = self.environment.get("data")
        return str(data.get("fingerprint", "")) if isinstance(data, Mapping) else ""

    def series(self, name: str, over: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Two columns of metrics.jsonl, `over` and `name`, (n,) float64 each, from the lines that have both."""
        pairs = [(line[over], line[name]) for line in self.lines if _is_number(line.get(name), line.get(over))]
        columns = np.array(pairs, dtype=np.float64).reshape(-1, 2)
        return columns[:, 0], columns[:, 1]


def read_run(where: str | Path) -> RunRecord:
    """Read the records of a run directory; `CheckpointError` if they are missing or damaged."""
    path = Path(where)
    run = RunDirectory(path)
    if not run.config.is_file():
        known = [str(other.parent) for other in RUNS.glob("*/config.toml")]
        suggestion = nearest(str(where), known) or nearest(f"{RUNS}/{where}", known)
        raise CheckpointError(f"{path}: no run there, it has no {run.config.name}{suggestion}")
    return RunRecord(
        path=path,
        config=updated(RunConfig(), read_toml(run.config), where=str(run.config)),
        environment=_read_json(run.environment) if run.environment.is_file() else {},
        lines=[{key: _restored(value) for key, value in line.items()} for line in read_metrics(run.metrics)],
        evaluations=[_read_json(file) for file in sorted(run.evaluations.glob("[!.]*.json"))],
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; delete or restore it") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}; delete it")
    return content


def _restored(value: Any) -> Any:
    """Turn "nan", "inf" and "-inf" back into floats; lists element by element."""
    if isinstance(value, list):
        return [_restored(entry) for entry in value]
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _is_number(*values: object) -> bool:
    """Whether all are floats, or integers that a float can hold."""
    return all(
        isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023)
        for value in values
    )
