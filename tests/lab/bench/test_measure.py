"""Windows in turns, their medians, quartiles and ratios; the measured peak; the clock."""

import math
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quillgpt.errors import ConfigError
from quillgpt.lab.bench import measure
from quillgpt.lab.bench.measure import (
    Clock,
    Peak,
    Plan,
    Spread,
    Window,
    best_peaks,
    measure_in_turns,
    measure_peak,
    measure_window,
    portion_size,
    rates,
    ratios,
)


def window(count: int, seconds: float, **parts: float) -> Window:
    return Window(repetitions=count, seconds=seconds, amounts={"tokens": 10.0 * count}, parts=parts)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8))
def test_a_spread_has_the_quartiles_of_numpy(values: list[float]) -> None:
    spread = Spread.of(values)
    found = [spread.first_quartile, spread.median, spread.third_quartile]
    assert found == pytest.approx(np.percentile(values, [25, 50, 75]).tolist())
    assert spread.values == tuple(values)


def test_every_other_round_runs_backwards_after_all_sides_are_warm() -> None:
    calls: list[str] = []

    def side(name: str):
        def run(count: int) -> Window:
            calls.append(f"{name}{count}")
            return window(count, count * 0.25)

        return run

    found = measure_in_turns([side("a"), side("b")], Plan(windows=3, seconds=4.0, warmup=0))
    assert [one for one, _ in groupby(calls)] == ["a1", "b1", "a2", "b2", "a2", "b2"]
    assert calls[:12] == ["a1", "a1", "b1", "b1", *["a2"] * 8]
    assert [[one.repetitions for one in side] for side in found] == [[16, 16, 16], [16, 16, 16]]


def test_a_portion_is_an_eighth_of_a_window_by_the_fastest_warm_up() -> None:
    for fastest, count in [(0.5, 1), (0.03, 8), (9.0, 1), (1e-9, 250_000)]:
        times = iter([fastest * 7, fastest])
        assert portion_size(lambda _, t=times: window(1, next(t)), Plan(seconds=2.0, warmup=0)) == count, fastest


def test_the_warm_up_lasts_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([float(second) for second in range(100)])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))
    calls: list[int] = []
    portion_size(lambda count: (calls.append(count), window(count, 1.0))[1], Plan(seconds=1.0, warmup=6.0))
    assert len(calls) == 7


def test_a_window_ends_in_time_on_a_machine_that_became_slower() -> None:
    slow = measure_window(lambda count: window(count, count * 10.0, read=count * 2.0), 8, 1.0)
    assert (slow.repetitions, slow.seconds, slow.amounts, slow.parts) == (8, 80.0, {"tokens": 80.0}, {"read": 16.0})
    steady = measure_window(lambda count: window(count, count * 0.125, read=count * 0.0625), 2, 1.0)
    assert (steady.repetitions, steady.seconds, steady.parts) == (8, 1.0, {"read": 0.5})


def test_rates_are_of_windows_or_parts_and_ratios_within_each_round() -> None:
    measured = [window(2, 4.0, read=1.0), window(2, 2.0, read=0.5)]
    assert rates(measured, "tokens").values == (5.0, 10.0)
    assert rates(measured, "tokens", "read").values == (20.0, 40.0)
    slowed = Spread.of([1.0, 10.0, 100.0])  # by another program, in two rounds of three, both sides alike
    assert ratios(Spread.of([2.0, 30.0, 400.0]), slowed).values == (2.0, 3.0, 4.0)


def test_an_invalid_plan_is_refused_by_name() -> None:
    wrong = [("windows", 0), ("windows", 1001), ("seconds", 0.0), ("seconds", math.nan), ("seconds", math.inf)]
    for name, value in [*wrong, ("warmup", -1.0)]:
        with pytest.raises(ConfigError, match=name):
            Plan(**{name: value})


def test_the_peak_is_the_best_size_by_two_n_cubed(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {32: 5.0, 64: 0.5}
    monkeypatch.setattr(measure, "_fastest_product", lambda device, dtype, size, _: seconds[size])
    peak = measure_peak("cpu", "bf16")
    assert (peak.measured_flops, peak.square) == (2 * 64**3 / 0.5, 64)
    assert (peak.device, peak.dtype, peak.threads) == ("cpu", "bf16", torch.get_num_threads())
    assert peak.shares(2 * 64**3) == (0.5, None)  # a CPU has no data sheet


def test_the_peak_multiplies_every_size_in_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.mm
    for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        calls: list[tuple] = []

        def spy(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor, to: list = calls) -> torch.Tensor:
            to.append((left.dtype, tuple(left.shape), tuple(right.shape)))
            return real(left, right, out=out)

        monkeypatch.setattr(torch, "mm", spy)
        assert 0 < measure_peak("cpu", name).measured_flops < 1e15
        assert {*calls} == {(dtype, (size, size), (size, size)) for size in (32, 64)}
        assert len(calls) >= 4  # of each size one to warm up, and at least one that counts


def test_the_best_peak_of_a_kind_is_that_of_every_side_of_the_kind() -> None:
    def peak(flops: float, dtype: str) -> Peak:
        return Peak(measured_flops=flops, square=1, device="cpu", dtype=dtype, threads=1, datasheet_flops=None)

    best = best_peaks([peak(1, "fp32"), peak(5, "bf16"), peak(2, "fp32")], [peak(3, "fp32"), peak(4, "bf16")])
    assert [one.measured_flops for one in best] == [3, 5, 3]


def test_a_clock_adds_up_parts_and_waits_for_the_gpu_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 1.5, 10.0, 12.0, 20.0, 20.25, 30.0, 31.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))
    clock = Clock("cpu")
    for part in ("data", "forward", "data"):
        with clock(part):
            pass
    assert clock.seconds == {"data": 0.75, "forward": 2.0}
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("waited"))
    with Clock("cuda:0")("forward"):
        events.append("worked")
    assert events == ["waited", "worked", "waited"]
