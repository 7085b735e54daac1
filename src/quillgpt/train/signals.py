"""SIGTERM, SIGINT and SIGUSR1 set a flag; the loop saves at the next step boundary and leaves. A second leaves now."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")


class StopRequest:
    """The number of the first signal that arrived, 0 while none has."""

    def __init__(self) -> None:
        self.signal = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the signals for the length of the block; outside the main thread, where Python cannot, do nothing."""
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        request.signal = number

    previous = {}
    for name in NAMES:
        if hasattr(signal, name):  # Windows has no SIGUSR1
            try:
                previous[name] = signal.signal(getattr(signal, name), note)
            except ValueError:
                break
    try:
        yield request
    finally:
        for name, handler in previous.items():
            signal.signal(getattr(signal, name), handler)
