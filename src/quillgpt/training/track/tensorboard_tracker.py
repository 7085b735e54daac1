"""TensorBoard: event files in the run's tensorboard/ folder; `tensorboard --logdir runs` shows them."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class TensorboardTracker:
    """Writes event files."""

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def log(self, values: dict[str, float], /, step: int) -> None:
        """Record the numbers of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Write what is buffered and close."""
        self._writer.close()


def start(project: str, name: str, settings: Mapping[str, object], directory: Path) -> TensorboardTracker:
    """Open the run's event files."""
    return TensorboardTracker(SummaryWriter(str(directory / "tensorboard")))
