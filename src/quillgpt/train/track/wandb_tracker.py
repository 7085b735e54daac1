"""Weights & Biases; WANDB_MODE=offline keeps everything on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb


class WandbTracker:
    """One wandb run."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of a step."""
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        """Send what is left."""
        self._run.finish()


def start(project: str, name: str, settings: Mapping[str, object], directory: Path) -> WandbTracker:
    """Begin a run, or continue the one of the same name in this project."""
    return WandbTracker(
        wandb.init(project=project, name=name, id=name, resume="allow", config=dict(settings), dir=directory)
    )
