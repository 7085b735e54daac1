"""While `quill bench` works: where it works, and how far it is."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quillgpt.cli.prepare import progress_display

if TYPE_CHECKING:
    from rich.progress import Progress

    from quillgpt.config import ModelConfig
    from quillgpt.train.progress import ShowProgress
    from quillgpt.train.resolve import Choices
    from quillgpt.train.resume import Position


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """A directory that is gone when the block ends, also by a signal."""
    from quillgpt.train.signals import stopping_at_once

    with (
        stopping_at_once("stopped; nothing is kept"),
        tempfile.TemporaryDirectory(prefix="quill-bench-", ignore_cleanup_errors=True) as folder,
    ):
        yield Path(folder)


class Status:
    """How far it is, on standard error: a bar on a terminal, otherwise a line for each part; and a run's `Screen`."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._bars: Progress | None = None
        self._told = ""

    def __enter__(self) -> "Status":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, what: str, done: int, count: int) -> None:
        """Show it; the bar begins with the first call, because setting up has displays of its own."""
        if not self._console.is_terminal:
            if what != self._told:
                print(what, file=sys.stderr)
            self._told = what
            return
        if self._bars is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bars = Progress(*columns, console=self._console, transient=True)
            self._bars.add_task("")
            self._bars.start()
        self._bars.update(self._bars.task_ids[0], description=what, completed=done, total=count)

    def say(self, text: str) -> None:
        """Show one line that stays."""
        from rich.text import Text

        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def preparing(self) -> "contextlib.AbstractContextManager[ShowProgress]":
        """Show a preparation as `quill prepare` does."""
        return progress_display()

    @contextlib.contextmanager
    def training(
        self,
        run: Path,
        model: "ModelConfig",
        choices: "Choices",
        reasons: Mapping[str, str],
        position: "Position",
        lora_rank: int = 0,
    ) -> Iterator[None]:
        """Nothing: the table says it."""
        yield

    def step(self, line: Mapping[str, Any]) -> None:
        """Show an evaluation as a line."""
        if "held_out_loss" in line:
            after = f"after {line['elapsed_seconds']:,.1f} s of training"
            self.say(f"  step {line['step']:>7,}  held out {line['held_out_loss']:.4f} {after}")
