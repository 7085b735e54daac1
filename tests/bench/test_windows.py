"""Windows in turn, their median and quartiles, and ratios of neighbours."""

import math
from itertools import groupby

import numpy as np
import pytest

from quillgpt.bench import windows
from quillgpt.bench.windows import Plan, Spread, Window, filled, in_turn, portion_of, rates, ratios
from quillgpt.errors import ConfigError


def window(count: int, seconds: float, **parts: float) -> Window:
    return Window(repetitions=count, seconds=seconds, amounts={"tokens": 10.0 * count}, parts=parts)


@pytest.mark.parametrize("values", [[5.0], [1.0, 2.0], [3.0, 1.0, 2.0], [4.0, 8.0, 15.0, 16.0, 23.0, 42.0]])
def test_a_spread_is_the_quartiles_of_numpy(values: list[float]) -> None:
    spread = Spread.of(values)
    assert [spread.low, spread.median, spread.high] == pytest.approx(np.percentile(values, [25, 50, 75]).tolist())
    assert spread.values == tuple(values)


def test_every_other_round_goes_backwards_after_all_are_warm() -> None:
    calls: list[str] = []

    def side(name: str):
        def run(count: int) -> Window:
            calls.append(f"{name}{count}")
            return window(count, count * 0.25)

        return run

    found = in_turn([side("a"), side("b")], Plan(windows=3, seconds=4.0, warmup=0))
    assert [one for one, _ in groupby(calls)] == ["a1", "b1", "a2", "b2", "a2", "b2"]
    assert calls[:12] == ["a1", "a1", "b1", "b1", *["a2"] * 8]
    assert [[one.repetitions for one in side] for side in found] == [[16, 16, 16], [16, 16, 16]]


@pytest.mark.parametrize(("fastest", "count"), [(0.5, 1), (0.03, 8), (9.0, 1), (1e-9, 250_000)])
def test_a_portion_is_an_eighth_of_a_window_by_the_fastest_time_of_the_warm_up(fastest: float, count: int) -> None:
    times = iter([fastest * 7, fastest])
    assert portion_of(lambda _: window(1, next(times)), Plan(seconds=2.0, warmup=0)) == count


def test_a_window_ends_in_time_on_a_machine_that_has_become_slower() -> None:
    slow = filled(lambda count: window(count, count * 10.0, read=count * 2.0), 8, 1.0)
    assert (slow.repetitions, slow.seconds, slow.amounts, slow.parts) == (8, 80.0, {"tokens": 80.0}, {"read": 16.0})
    steady = filled(lambda count: window(count, count * 0.125, read=count * 0.0625), 2, 1.0)
    assert (steady.repetitions, steady.seconds, steady.parts) == (8, 1.0, {"read": 0.5})


def test_the_warm_up_lasts_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([float(second) for second in range(100)])
    monkeypatch.setattr(windows.time, "perf_counter", lambda: next(now))
    calls: list[int] = []

    def side(count: int) -> Window:
        calls.append(count)
        return window(count, 1.0)

    portion_of(side, Plan(seconds=1.0, warmup=6.0))
    assert len(calls) == 7


def test_a_rate_is_of_the_whole_window_or_of_a_part() -> None:
    measured = [window(2, 4.0, read=1.0), window(2, 2.0, read=0.5)]
    assert rates(measured, "tokens").values == (5.0, 10.0)
    assert rates(measured, "tokens", "read").values == (20.0, 40.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    slowed = Spread.of([1.0, 10.0, 100.0])  # by another program, in two rounds of three, both alike
    assert ratios(Spread.of([2.0, 30.0, 400.0]), slowed).values == (2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("windows", 0),
        ("windows", 1001),
        ("seconds", 0.0),
        ("seconds", math.nan),
        ("seconds", math.inf),
        ("warmup", -1.0),
    ],
)
def test_an_impossible_plan_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} = .* is not possible: expected"):
        Plan(**{name: value})
