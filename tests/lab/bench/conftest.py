"""The peak is measured with tiny matrices here."""

import pytest


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quillgpt.lab.bench.measure.SQUARES", {"cpu": (32, 64)})
    monkeypatch.setattr("quillgpt.lab.bench.measure.PEAK_SECONDS", 0.01)
