"""Trackers. To add one: a file with `start(project, name, settings, directory) -> Tracker`, and a line in `TRACKERS`.

metrics.jsonl is always written; a tracker gets the same numbers. They are optional packages (`quillgpt[track]`).
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from quillgpt.errors import ConfigError, pick

TRACKERS = {
    "wandb": "quillgpt.training.track.wandb_tracker",
    "tensorboard": "quillgpt.training.track.tensorboard_tracker",
    "trackio": "quillgpt.training.track.trackio_tracker",
}


class Tracker(Protocol):
    """What receives the numbers of a run. The runs of wandb and trackio have these methods already."""

    def log(self, values: dict[str, float], /, step: int) -> None:
        """Record the numbers of a step."""
        ...

    def finish(self) -> None:
        """Write what is buffered and close."""
        ...


class NoTracker:
    """Records nothing."""

    def log(self, values: dict[str, float], /, step: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


def start_tracker(choice: str, *, project: str, name: str, settings: Mapping[str, object], directory: Path) -> Tracker:
    """Start the tracker of that name; a missing package is a `ConfigError` that says how to install it."""
    if choice == "none":
        return NoTracker()
    module = pick(TRACKERS, choice, "track")
    try:
        return importlib.import_module(module).start(project, name, settings, directory)
    except ImportError as error:
        missing = error.name or choice
        raise ConfigError(f"track = {choice} needs the package {missing}: pip install 'quillgpt[track]'") from None
