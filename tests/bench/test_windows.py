"""Windows in turn, their median and quartiles, and ratios of neighbours."""

import math

import numpy as np
import pytest

from quillgpt.bench import windows
from quillgpt.bench.windows import Plan, Spread, Window, in_turn, rates, ratios, repetitions_for
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
            return window(count, count * 1e-3)

        return run

    found = in_turn([side("a"), side("b")], Plan(windows=3, seconds=5e-3, warmup=0))
    assert calls == ["a1", "a1", "b1", "b1", "a5", "b5", "b5", "a5", "a5", "b5"]
    assert [[one.repetitions for one in side] for side in found] == [[5, 5, 5], [5, 5, 5]]


@pytest.mark.parametrize(("fastest", "count"), [(0.5, 4), (0.03, 67), (9.0, 1)])
def test_a_window_is_filled_by_the_fastest_time_of_the_warm_up(fastest: float, count: int) -> None:
    times = iter([fastest * 7, fastest])
    assert repetitions_for(lambda _: window(1, next(times)), Plan(seconds=2.0, warmup=0)) == count


def test_the_warm_up_lasts_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([float(second) for second in range(100)])
    monkeypatch.setattr(windows.time, "perf_counter", lambda: next(now))
    calls: list[int] = []

    def side(count: int) -> Window:
        calls.append(count)
        return window(count, 1.0)

    repetitions_for(side, Plan(seconds=1.0, warmup=6.0))
    assert len(calls) == 7


def test_a_rate_is_of_the_whole_window_or_of_a_part() -> None:
    measured = [window(2, 4.0, read=1.0), window(2, 2.0, read=0.5)]
    assert rates(measured, "tokens").values == (5.0, 10.0)
    assert rates(measured, "tokens", "read").values == (20.0, 40.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    slowed = Spread.of([1.0, 10.0, 100.0])  # by another program, in two rounds of three, both alike
    assert ratios(Spread.of([2.0, 20.0, 200.0]), slowed).values == (2.0, 2.0, 2.0)


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
