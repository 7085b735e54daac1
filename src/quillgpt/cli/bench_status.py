"""While `quill bench` works: where it works, and how far it is."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


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
    """How far it is, on standard error: a bar on a terminal, otherwise a line for each part."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self._bars: Progress | None = None
        self._told = ""

    def __enter__(self) -> "Status":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, what: str, done: int, count: int) -> None:
        """Show it; the bar begins with the first call, because setting up has displays of its own."""
        if not self.console.is_terminal:
            if what != self._told:
                print(what, file=sys.stderr)
            self._told = what
            return
        if self._bars is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bars = Progress(*columns, console=self.console, transient=True)
            self._bars.add_task("")
            self._bars.start()
        self._bars.update(self._bars.task_ids[0], description=what, completed=done, total=count)
