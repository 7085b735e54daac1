"""What a run left behind, for those who judge it: its settings, its machine, its metrics and its evaluations.

Nothing of the model is read, so a run without checkpoints, or one that still goes on, can be looked at too.
"""

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

OF_THE_RECORDS = {
    *("out", "fresh", "track", "track_project", "track_name"),  # where they go
    *("log_every", "eval_every", "sample_every", "save_every", "keep_last"),  # how often something is kept
    *("eval_only", "eval_tasks", "task_data"),  # what is evaluated
}
"""settings that say what is kept of a run and how often it is looked at, and leave the training what it is"""

NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
"""how `append_metrics` writes numbers that JSON does not have"""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The records of one run. `lines` are those of metrics.jsonl, `evaluations` the files of evaluations/ by name."""

    path: Path
    config: RunConfig
    environment: Mapping[str, Any]
    lines: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.name

    @property
    def settings(self) -> dict[str, Scalar]:
        """Every setting by its name, as asked for; `out` is not kept with a run."""
        return {name: value for name, value in flatten(self.config).items() if name != "out"}

    @property
    def data_fingerprint(self) -> str:
        """What identifies the data of both splits, tokenizer included; empty for a run older than this record."""
        data = self.environment.get("data")
        return str(data.get("fingerprint", "")) if isinstance(data, Mapping) else ""

    def series(self, name: str, over: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Two columns of metrics.jsonl, (n,) float64 each: `over` and `name`, from the lines that have both."""
        pairs = [(line[over], line[name]) for line in self.lines if _is_number(line.get(name), line.get(over))]
        columns = np.array(pairs, dtype=np.float64).reshape(-1, 2)
        return columns[:, 0], columns[:, 1]


def read_run(where: str | Path) -> RunRecord:
    """The records of a run directory; `CheckpointError` where there are none, or where they cannot be read."""
    path = Path(where)
    run = RunDirectory(path)
    if not run.config.is_file():
        known = [str(other.parent) for other in RUNS.glob("*/config.toml")]
        meant = nearest(str(where), known) or nearest(f"{RUNS}/{where}", known)
        raise CheckpointError(f"{path}: no run there, it has no {run.config.name}{meant}")
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
        raise CheckpointError(f"{path}: cannot be read: {error}; delete it, or bring the run's own back") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}; delete it")
    return content


def _restored(value: Any) -> Any:
    """A number that JSON does not have, as a float again; lists element by element."""
    if isinstance(value, list):
        return [_restored(entry) for entry in value]
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _is_number(*values: object) -> bool:
    return all(isinstance(value, float) or _fits_a_float(value) for value in values)


def _fits_a_float(value: object) -> bool:
    """Whether it is a whole number that a float holds; a file may have a larger one."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023
