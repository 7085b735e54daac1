"""Standard output of a long run, whose lines matter less than the run."""

import contextlib
import os
import signal
import sys
from typing import IO, TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console


class Lines:
    """A text stream that stops the run where nobody reads any more, and loses lines where they cannot be written.

    A closed pipe (`quill train ... | head`) is what SIGTERM is: the run ends at the next step boundary, saved. On a
    full disk (`quill train ... > log`) the run goes on without its lines.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        """Write the text, or lose it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Hand on what is buffered, or lose it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def isatty(self) -> bool:
        """Whether a terminal shows the lines."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor."""
        return self._stream.fileno()

    def _lose(self, error: OSError) -> None:
        # From here on nothing can fail: a second SIGTERM would end the run at once, unsaved.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        if isinstance(error, BrokenPipeError):
            signal.raise_signal(signal.SIGTERM)
        else:
            reason = f"standard output cannot be written: {error.strerror}"
            with contextlib.suppress(OSError):  # the same terminal, gone
                print(f"quill: {reason}; the run goes on without its lines", file=sys.stderr)


def run_console() -> "Console":
    """The console of a command that trains."""
    from rich.console import Console

    return Console(file=cast(IO[str], Lines(sys.stdout)), highlight=False)
