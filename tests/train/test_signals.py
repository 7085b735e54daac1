"""Signals are requests: one asks, a second one insists, and the same one heard twice is one."""

import os
import signal

import pytest

from quillgpt.train import signals
from quillgpt.train.signals import stop_requests


@pytest.fixture
def deaths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Signals that the handler sends to its own process to end it, which do not arrive."""
    sent: list[int] = []
    fake = type("os", (), {"kill": staticmethod(lambda _, number: sent.append(number)), "getpid": os.getpid})
    monkeypatch.setattr(signals, "os", fake)
    return sent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_noted_and_the_former_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as request:
        assert request.signal == 0
        signal.raise_signal(number)
        assert request.signal == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_arrives_twice_at_once_is_one_request(number: signal.Signals, deaths: list[int]) -> None:
    with stop_requests():
        signal.raise_signal(number)
        signal.raise_signal(number)  # from Slurm, and passed on by torchrun
    assert deaths == []


def test_a_second_request_ends_the_process(deaths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", 0.0)
    with stop_requests():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert deaths == [signal.SIGTERM]


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGUSR1", "SIGTERM"), ("SIGTERM", "SIGINT")])
def test_a_second_ctrl_c_or_another_signal_ends_the_process_at_once(first: str, second: str, deaths: list[int]) -> None:
    with stop_requests():
        signal.raise_signal(getattr(signal, first))
        signal.raise_signal(getattr(signal, second))
    assert deaths == [getattr(signal, second)]
