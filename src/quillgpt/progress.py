"""How the progress of long work is reported: one function, and a time in text."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""receives (description, done, total) while long work is done; a new description is the next part of the work"""


def no_progress(description: str, done: int, total: int) -> None:
    """Show nothing."""


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
