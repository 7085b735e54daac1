"""Measurements of one or several sides in turns: windows, medians, ratios; the peak, the clock and the profiler.

    round 1   A A A | B B B
    round 2   B B B | A A A      backwards, so that a machine that slows down favours no side
    round 3   A A A | B B B

Other work on the machine disturbs all sides alike. A ratio is taken within each round, between neighbours in time; its
median and quartiles are over the rounds.

The share of the peak shows whether the program or the machine is the limit. The data sheet gives a GPU's peak at its
highest clock, which it may not keep, and none for a CPU; so the peak is measured too, with the same threads.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from quillgpt import files
from quillgpt.errors import require
from quillgpt.evaluate.results import code_fingerprint
from quillgpt.model.precision import DTYPES
from quillgpt.progress import Progress, no_progress
from quillgpt.runtime import available_cores, cpu_name, peak_flops

FEWEST_REPETITIONS = 2
PORTIONS = 8  # of a window; each ends by waiting for the device, which has to be rare
MAX_WINDOWS, MAX_SECONDS = 1_000, 3_600.0
SQUARES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384), "mps": (1024, 2048, 4096)}
"""sizes of the square matrices to multiply; which is fastest depends on caches and on how tiles divide the size"""
PEAK_SECONDS = 1.0  # of one measurement of the peak, before the windows and again after them
OPERATORS = 10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The number of windows, and seconds of a window and of the warm-up, of each side."""

    windows: int = 5
    seconds: float = 2.0
    warmup: float = 2.0

    def __post_init__(self) -> None:
        require("windows", self.windows, 1 <= self.windows <= MAX_WINDOWS, f"between 1 and {MAX_WINDOWS:,}")
        require("seconds", self.seconds, 0 < self.seconds <= MAX_SECONDS, f"> 0 and <= {MAX_SECONDS:,.0f}")
        require("warmup", self.warmup, 0 <= self.warmup <= MAX_SECONDS, f"between 0 and {MAX_SECONDS:,.0f}")


@dataclass(frozen=True, kw_only=True)
class Window:
    """One measurement. amounts: the work done, by unit; parts: seconds of its parts."""

    repetitions: int
    seconds: float
    amounts: Mapping[str, float]
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, quartiles, and all values in the order of measurement."""

    median: float
    first_quartile: float
    third_quartile: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        pair = values if len(values) > 1 else [*values, *values]
        low, median, high = statistics.quantiles(pair, n=4, method="inclusive")
        return cls(median=median, first_quartile=low, third_quartile=high, values=tuple(values))


Side = Callable[[int], Window]
"""repetitions of the work -> their measurement"""


def measure_in_turns(sides: Sequence[Side], plan: Plan, progress: Progress = no_progress) -> list[list[Window]]:
    """The windows of each side. All sides are warmed up first; every other round runs backwards."""
    portions = []
    for number, side in enumerate(sides):
        progress("warm-up", number, len(sides))
        portions.append(portion_size(side, plan))
    found: list[list[Window]] = [[] for _ in sides]
    for turn in range(plan.windows):
        for number in turn_order(len(sides), turn):
            progress("measuring", sum(map(len, found)), plan.windows * len(sides))
            found[number].append(measure_window(sides[number], portions[number], plan.seconds))
    return found


def turn_order(count: int, turn: int) -> Sequence[int]:
    """The order of the sides in a round: forwards in even rounds, backwards in odd ones."""
    return range(count) if turn % 2 == 0 else range(count)[::-1]


def portion_size(side: Side, plan: Plan) -> int:
    """Warm up, which fills caches and may compile; return the repetitions in a portion of a window."""
    started, fastest, done = time.perf_counter(), float("inf"), 0
    while done < FEWEST_REPETITIONS or time.perf_counter() - started < plan.warmup:
        fastest = min(fastest, side(1).seconds)
        done += 1
    return max(1, round(plan.seconds / max(fastest, 1e-6) / PORTIONS))


def measure_window(side: Side, portion: int, seconds: float) -> Window:
    """Measure for about `seconds`, also on a machine that has slowed down since the warm-up."""
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
    """The amount per second of each window, or of one part of it."""
    return Spread.of([window.amounts[unit] / (window.parts[part] if part else window.seconds) for window in windows])


def ratios(numerator: Spread, denominator: Spread) -> Spread:
    """The ratios of two measurements, round by round."""
    return Spread.of([a / b for a, b in zip(numerator.values, denominator.values, strict=True)])


@dataclass(frozen=True, kw_only=True)
class Peak:
    """FLOP/s of the fastest matrix product, its size, and the FLOP/s of the data sheet; None: not in the table."""

    measured_flops: float
    square: int
    device: str
    dtype: str
    threads: int
    datasheet_flops: float | None

    def shares(self, flops: float) -> tuple[float, float | None]:
        """The model FLOPs utilization (MFU) by the measured peak and by the data sheet."""
        return flops / self.measured_flops, flops / self.datasheet_flops if self.datasheet_flops else None


def measure_peak(device: str, dtype: str, seconds: float | None = None) -> Peak:
    """The fastest of the square matrix products (N, N) @ (N, N), of 2 N^3 operations each."""
    place = torch.device(device)
    sizes = SQUARES[place.type]
    each = (seconds or PEAK_SECONDS) / len(sizes)
    best, square = max((2 * size**3 / _fastest_product(place, DTYPES[dtype], size, each), size) for size in sizes)
    return Peak(
        measured_flops=best,
        square=square,
        device=device,
        dtype=dtype,
        threads=torch.get_num_threads(),
        datasheet_flops=peak_flops(place, dtype) or None,
    )


def best_peaks(before: Sequence[Peak], after: Sequence[Peak]) -> list[Peak]:
    """The highest peak of each side's device, dtype and threads: other programs can only slow one down."""
    best: dict[tuple[str, str, int], Peak] = {}
    for peak in (*before, *after):
        kind = (peak.device, peak.dtype, peak.threads)
        best[kind] = max(best.get(kind, peak), peak, key=lambda one: one.measured_flops)
    return [best[peak.device, peak.dtype, peak.threads] for peak in before]


def _fastest_product(device: torch.device, dtype: torch.dtype, size: int, seconds: float) -> float:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty_like(left)
    torch.mm(left, right, out=out)
    fastest, started = float("inf"), time.perf_counter()
    while fastest == float("inf") or time.perf_counter() - started < seconds:
        clock = Clock(device.type)
        with clock("product"):
            torch.mm(left, right, out=out)
        fastest = min(fastest, clock.seconds["product"])
    return fastest


def synchronize(device: str) -> None:
    """Wait until the device has finished its work; nothing to do on a CPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()


class Clock:
    """Seconds of named parts; waits for the device before a part begins and before it ends."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to those of the part."""
        synchronize(self._device)
        started = time.perf_counter()
        yield
        synchronize(self._device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@contextlib.contextmanager
def fresh_compile_cache(folder: Path) -> Iterator[None]:
    """Keep compiled code in the folder only, so that compiling takes as long as on a machine without a cache."""
    from torch._inductor.utils import fresh_cache

    with fresh_cache(dir=str(folder), delete=False):  # after Ctrl-C it would not delete; the owner of the folder does
        yield


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator without those it calls: calls and seconds per repetition, and its share of the time."""

    name: str
    calls: float
    seconds: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The operators that take most time, in descending order, and the file of the trace."""

    operators: tuple[Operator, ...]
    trace: Path


def machine() -> dict[str, Any]:
    """The hardware and the code of the measurement."""
    return {
        "processor": cpu_name(),
        "cores": available_cores(),
        "cards": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "torch": torch.__version__,
        "quillgpt": version("quillgpt"),
        "code": code_fingerprint(),
    }


def profile(work: Callable[[int], object], repetitions: int, *, device: str, trace: Path) -> Profile:
    """Run the work under torch's profiler and write the trace; on CUDA the seconds are the device's."""
    on_cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    profiler = torch.profiler.profile(activities=activities, acc_events=True)
    with _without_stderr():
        profiler.start()
    try:
        work(repetitions)
    finally:
        with _without_stderr():
            profiler.stop()
    with tempfile.TemporaryDirectory(prefix="quill-bench-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        with files.atomic_file(trace) as file:
            file.write(path.read_bytes())
    rows = [
        (event.key, event.count, (event.self_device_time_total if on_cuda else event.self_cpu_time_total) / 1e6)
        for event in profiler.key_averages()
        if not event.is_user_annotation
    ]
    total = sum(seconds for _, _, seconds in rows) or 1.0
    heaviest = sorted(rows, key=lambda row: -row[2])[:OPERATORS]
    return Profile(
        operators=tuple(
            Operator(name=name, calls=count / repetitions, seconds=seconds / repetitions, share=seconds / total)
            for name, count, seconds in heaviest
        ),
        trace=trace,
    )


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what the profiler's C++ code writes to standard error."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
