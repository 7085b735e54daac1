"""Trackers. To add one: a file with `start(project, name, settings, directory) -> Tracker`, and a line in `TRACKERS`.

metrics.jsonl is always written; a tracker gets the same lines besides. They are optional packages (`quillgpt[track]`).
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from quillgpt.errors import ConfigError, pick

TRACKERS = {
    "wandb": "quillgpt.train.track.wandb_tracker",
    "tensorboard": "quillgpt.train.track.tensorboard_tracker",
    "trackio": "quillgpt.train.track.trackio_tracker",
}


class Tracker(Protocol):
    """What a run tells a tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of a step."""
        ...

    def finish(self) -> None:
        """Write what is buffered and close."""
        ...


class NoTracker:
    """The tracker of a run that has none."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


def start_tracker(choice: str, *, project: str, name: str, settings: Mapping[str, object], directory: Path) -> Tracker:
    """Start the tracker of that name; a package that is missing is a `ConfigError` that says how to get it."""
    if choice == "none":
        return NoTracker()
    module = pick(TRACKERS, choice, "track")
    try:
        return importlib.import_module(module).start(project, name, settings, directory)
    except ImportError as error:
        missing = error.name or choice
        raise ConfigError(f"track = {choice} needs the package {missing}: pip install 'quillgpt[track]'") from None
