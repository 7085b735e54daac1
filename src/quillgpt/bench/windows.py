"""Repeated windows of one or several sides, in turn, so that whatever else the machine does disturbs all alike.

    round 1   A A A | B B B
    round 2   B B B | A A A      backwards, so that a machine that slows down favours nobody
    round 3   A A A | B B B

A ratio is taken within each round, of neighbours in time, and its median and quartiles are over the rounds.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from quillgpt.errors import require

FEWEST_REPETITIONS = 2
PORTIONS = 8  # of a window; each ends by waiting for the device, which has to be rare
MOST_WINDOWS, MOST_SECONDS = 1_000, 3_600.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure: warm-up and window in seconds of each side, and how many windows."""

    windows: int = 5
    seconds: float = 2.0
    warmup: float = 2.0

    def __post_init__(self) -> None:
        require("windows", self.windows, 1 <= self.windows <= MOST_WINDOWS, f"1 to {MOST_WINDOWS:,}")
        require("seconds", self.seconds, 0 < self.seconds <= MOST_SECONDS, f"above 0, at most {MOST_SECONDS:,.0f}")
        require("warmup", self.warmup, 0 <= self.warmup <= MOST_SECONDS, f"0 to {MOST_SECONDS:,.0f}")


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a window took. `amounts` are what was done in it by their units, `parts` the seconds of its parts."""

    repetitions: int
    seconds: float
    amounts: Mapping[str, float]
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median of several measurements, their quartiles, and all of them in order."""

    median: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0], values=tuple(values))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, values=tuple(values))


Side = Callable[[int], Window]
"""does the same so many times, and says what that took"""
Progress = Callable[[str, int, int], None]


def in_turn(
    sides: Sequence[Side], plan: Plan, progress: Progress = lambda what, done, count: None
) -> list[list[Window]]:
    """The windows of each side. All are warmed up first; every other round goes through the sides backwards."""
    portions = []
    for number, side in enumerate(sides):
        progress("warm-up", number, len(sides))
        portions.append(portion_of(side, plan))
    found: list[list[Window]] = [[] for _ in sides]
    for turn in range(plan.windows):
        order = range(len(sides)) if turn % 2 == 0 else reversed(range(len(sides)))
        for number in order:
            progress("measuring", sum(map(len, found)), plan.windows * len(sides))
            found[number].append(filled(sides[number], portions[number], plan.seconds))
    return found


def portion_of(side: Side, plan: Plan) -> int:
    """Repetitions in a part of a window, found while warming up: the first ones fill caches, and may compile."""
    began, fastest, done = time.perf_counter(), float("inf"), 0
    while done < FEWEST_REPETITIONS or time.perf_counter() - began < plan.warmup:
        fastest = min(fastest, side(1).seconds)
        done += 1
    return max(1, round(plan.seconds / max(fastest, 1e-6) / PORTIONS))


def filled(side: Side, portion: int, seconds: float) -> Window:
    """A window of about so many seconds, also where the machine has become slower since the warm-up."""
    done: list[Window] = []
    while not done or sum(one.seconds for one in done) < seconds:
        done.append(side(portion))
    return Window(
        repetitions=sum(one.repetitions for one in done),
        seconds=sum(one.seconds for one in done),
        amounts={unit: sum(one.amounts[unit] for one in done) for unit in done[0].amounts},
        parts={part: sum(one.parts[part] for one in done) for part in done[0].parts},
    )


def rates(windows: Sequence[Window], unit: str, part: str = "") -> Spread:
    """Of one unit so many a second, of the whole window or of one of its parts."""
    return Spread.of([window.amounts[unit] / (window.parts[part] if part else window.seconds) for window in windows])


def ratios(rates_of_one: Spread, rates_of_other: Spread) -> Spread:
    """How many times as fast the first is as the other, round by round."""
    pairs = zip(rates_of_one.values, rates_of_other.values, strict=True)
    return Spread.of([one / other for one, other in pairs])
