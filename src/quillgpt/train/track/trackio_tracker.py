"""Trackio: a local database; `trackio show` opens the dashboard."""

from collections.abc import Mapping
from pathlib import Path

import trackio


class TrackioTracker:
    """One trackio run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of a step."""
        trackio.log(dict(values), step=step)

    def finish(self) -> None:
        """Write what is buffered."""
        trackio.finish()


def start(project: str, name: str, settings: Mapping[str, object], directory: Path) -> TrackioTracker:
    """Begin a run, or continue the one of the same name in this project."""
    trackio.init(project=project, name=name, config=dict(settings), resume="allow", embed=False)
    return TrackioTracker()
