"""Weights & Biases; WANDB_MODE=offline keeps everything on this machine."""

from collections.abc import Mapping
from pathlib import Path

import wandb


def start(project: str, name: str, settings: Mapping[str, object], directory: Path) -> wandb.Run:
    """Begin a run, or continue the one of the same name in this project."""
    return wandb.init(project=project, name=name, id=name, resume="allow", config=dict(settings), dir=directory)
