"""What commands print: their consoles and tables, messages of the library, and the progress of long work."""

import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterator
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from quillgpt.progress import Progress, duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as ProgressBars
    from rich.table import Table

SECONDS_BETWEEN_LINES = 5.0
STYLES = {logging.WARNING: "yellow", logging.ERROR: "bold red"}  # others are dim


def output_console(*, pipe_columns: int) -> "Console":
    """Return a console on standard output, as wide as the terminal, or `pipe_columns` if it is not a terminal."""
    from rich.console import Console

    return Console(width=shutil.get_terminal_size(fallback=(pipe_columns, 50)).columns, highlight=False)


def plain_table(*headings: str, left: Collection[int], title: str = "") -> "Table":
    """Return an empty table without rules; the columns in `left` are for text, the others for numbers."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", pad_edge=False, title=title or None)
    table.title_justify, table.title_style = "left", "bold"
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number in left else "right", overflow="fold")
    return table


class RunStream:
    """A text stream that stops the run when its reader is gone, and drops lines that cannot be written.

    A closed pipe (`quill train ... | head`) acts as SIGTERM: the run stops at the next step boundary, saved. On a
    full disk (`quill train ... > log`) the run continues without its lines.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        """The stream's other attributes."""
        return getattr(self._stream, name)

    def _drop(self, error: OSError) -> None:
        # From here on nothing can fail: a second SIGTERM would end the run at once, unsaved.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if isinstance(error, BrokenPipeError):
            signal.raise_signal(signal.SIGTERM)
        else:
            reason = f"cannot write to standard output: {error.strerror}"
            with contextlib.suppress(OSError):  # standard error may be closed too
                print(f"quill: {reason}; the run continues without its lines", file=sys.stderr)


def run_console() -> "Console":
    """Return the console of a command that trains."""
    from rich.console import Console

    return Console(file=cast(IO[str], RunStream(sys.stdout)), highlight=False)


def notice(text: str, console: "Console | None" = None, style: str = "dim") -> None:
    """Print a line of information on the console, by default on standard error."""
    from rich.console import Console
    from rich.text import Text

    (console or Console(stderr=True)).print(Text(text), style=style, soft_wrap=True, highlight=False)


class MessageHandler(logging.Handler):
    """Prints log messages with `notice`: dim, warnings yellow, errors red."""

    def __init__(self, console: "Console | None") -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        notice(record.getMessage(), self._console, STYLES.get(record.levelno, "dim"))


@contextlib.contextmanager
def messages(console: "Console | None" = None, *, is_shown: bool = True) -> Iterator[None]:
    """Show the messages of the logger "quillgpt" on a console, by default on standard error, until the block ends.

    is_shown: false on every rank but the first, whose messages are enough.
    """
    logger = logging.getLogger("quillgpt")
    handlers, level = logger.handlers, logger.level
    logger.handlers = [MessageHandler(console) if is_shown else logging.NullHandler()]
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers = handlers
        logger.setLevel(level)


class ProgressReporter:
    """Shows progress on standard error: a bar on a terminal, otherwise lines.

    Without a terminal, each new description is a line, and every few seconds there is one with percentage, rate and
    time left. The bar appears with the first call and disappears at the end, so that other displays can precede it.
    """

    def __init__(self) -> None:
        self._bars: ProgressBars | None = None
        self._description = ""
        self._first_done = 0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressReporter":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, description: str, done: int, total: int) -> None:
        """Show that `done` of `total` is done; rate and time left are those since the description first came."""
        now = time.monotonic()
        is_new = description != self._description
        if is_new:
            self._description, self._first_done, self._started = description, done, now
        figures = progress_text(done, total, done - self._first_done, now - self._started)
        if sys.stderr.isatty():
            self._show_bar(description, done, total, figures)
        elif is_new or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(description if is_new else f"{description}: {figures}", file=sys.stderr, flush=True)

    def _show_bar(self, description: str, done: int, total: int, figures: str) -> None:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as ProgressBars

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
            self._bars = ProgressBars(*columns, console=Console(stderr=True, highlight=False), transient=True)
            self._bars.add_task("", figures="")
            self._bars.start()
        task = self._bars.task_ids[0]
        self._bars.update(task, description=description, completed=done, total=total, figures=figures)


@contextlib.contextmanager
def progress_display() -> Iterator[Progress]:
    """Give a function that shows progress on standard error, until the block ends."""
    with ProgressReporter() as reporter:
        yield reporter.show


def progress_text(done: int, total: int, recent: int, seconds: float) -> str:
    """Percentage, amounts, rate and time left, on one line; `recent` is what was done in the last `seconds`."""
    text = f"{done / max(total, 1):3.0%}, {_amount(done)} of {_amount(total)}"
    if recent <= 0 or seconds <= 0:
        return text
    rate = recent / seconds
    return f"{text}, {_amount(rate)}/s, {duration((total - done) / rate)} left"


def _amount(number: float) -> str:
    """A number with at most a few digits: 12.5, 1,200, 4.0M, 2.0G."""
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:,.1f}{unit}"
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.1f}"


def escaped(text: str) -> str:
    """Return the text on one line, with escapes for newlines and other control characters."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)
