"""Signals are requests: the first asks for a stop, a second one ends the process, and the same one twice is one."""

import os
import signal

import pytest

from quillgpt.errors import Stopped
from quillgpt.training import signals
from quillgpt.training.signals import stop_requests, stopping_at_once


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Signals that the handler sends to its own process to end it, which do not arrive."""
    numbers: list[int] = []
    fake = type("os", (), {"kill": staticmethod(lambda _, number: numbers.append(number)), "getpid": os.getpid})
    monkeypatch.setattr(signals, "os", fake)
    return numbers


def test_a_signal_is_noted_and_the_former_handler_comes_back() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        before = signal.getsignal(number)
        with stop_requests() as request:
            assert request.signal == 0
            signal.raise_signal(number)
            assert request.signal == number
        assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored() -> None:
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as request:
            signal.raise_signal(signal.SIGHUP)
            assert request.signal == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_request_ends_the_process_and_a_repetition_at_once_does_not(
    sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {
        ("SIGTERM", "SIGTERM"): [],  # from Slurm, and passed on by torchrun
        ("SIGUSR1", "SIGUSR1"): [],
        ("SIGINT", "SIGINT"): [signal.SIGINT],
        ("SIGUSR1", "SIGTERM"): [signal.SIGTERM],
        ("SIGTERM", "SIGINT"): [signal.SIGINT],
    }
    for names, expected in cases.items():
        sent.clear()
        with stop_requests():
            for name in names:
                signal.raise_signal(signal.Signals[name])
        assert sent == expected, names
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", 0.0)
    with stop_requests():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert sent[-1] == signal.SIGTERM


def test_where_nothing_needs_saving_a_signal_ends_the_block_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="nothing to save"), stopping_at_once("nothing to save"):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(KeyboardInterrupt), stopping_at_once("nothing to save"):
        signal.raise_signal(signal.SIGINT)
