"""Trackio: a local database; `trackio show` opens the dashboard."""

from collections.abc import Mapping
from pathlib import Path

import trackio

from quillgpt.training.track import Tracker


def start(project: str, name: str, settings: Mapping[str, object], directory: Path) -> Tracker:
    """Begin a run, or continue the one of the same name in this project; the module logs to it."""
    trackio.init(project=project, name=name, config=dict(settings), resume="allow", embed=False)
    return trackio
