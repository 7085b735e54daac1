"""Standard output of a long run, whose lines matter less than the run."""

import signal
import sys
from typing import IO, TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console


class Lines:
    """A text stream that loses lines where it cannot write them, and stops the run where nobody reads any more.

    On a full disk (`quill train ... > log`) the run goes on without its lines. A closed pipe (`quill train ... | head`)
    is what SIGTERM is: the run ends at the next step boundary, saved.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_told = False
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        """Write the text, or lose it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        """Hand on what is buffered, or lose it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def isatty(self) -> bool:
        """Whether a terminal shows the lines."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor."""
        return self._stream.fileno()

    def _lost(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            signal.raise_signal(signal.SIGTERM)
        elif not self._is_told:
            self._is_told = True
            reason = f"standard output cannot be written: {error.strerror}"
            print(f"quill: {reason}; the run goes on without its lines", file=sys.stderr)


def run_console() -> "Console":
    """The console of a command that trains."""
    from rich.console import Console

    return Console(file=cast(IO[str], Lines(sys.stdout)), highlight=False)
