"""A signal to stop sets a flag; the loop saves at the next step boundary and ends. A second signal ends it at once.

One request may arrive twice: Slurm and systemd signal every process of a job, and torchrun passes its own on. So the
same signal again within `SAME_REQUEST_SECONDS` is not a second one, except Ctrl-C, which a user may press twice.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from quillgpt.errors import Stopped

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
SAME_REQUEST_SECONDS = 2.0


class StopRequest:
    """The number of the first signal that arrived, 0 while none has."""

    def __init__(self) -> None:
        self.signal = 0
        self.arrived = 0.0


@contextlib.contextmanager
def stopping_at_once(message: str) -> Iterator[None]:
    """Let a signal end the block with `Stopped` where nothing needs saving; Ctrl-C stays a `KeyboardInterrupt`.

    For what is done between two runs; within a run, `stop_requests` handles the signals.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(message)

    with _handled(stop, [name for name in NAMES if name != "SIGINT"]):
        yield


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the signals until the block ends; outside the main thread, where Python cannot, do nothing."""
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        is_same = number == request.signal != signal.SIGINT
        if is_same and time.monotonic() - request.arrived < SAME_REQUEST_SECONDS:
            return
        if request.signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        request.signal, request.arrived = number, time.monotonic()

    with _handled(note, NAMES):
        yield request


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], names: Sequence[str]) -> Iterator[None]:
    """Handle the signals until the block ends, then restore the former handlers."""
    former = {}
    for name in names:
        number = getattr(signal, name, None)  # Windows has neither SIGUSR1 nor SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # `nohup` ignores SIGHUP
            with contextlib.suppress(ValueError):  # not the main thread
                former[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in former.items():
            signal.signal(number, previous)
