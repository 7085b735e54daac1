"""What belongs beside every number: the machine, and the most arithmetic it was seen to do.

A share of the peak says whether a program or the machine is the limit. The maker's figure is for a card at its highest
clock, which it may not keep, and a CPU has none; so the peak is measured too, in the same process and threads.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from quillgpt.hardware import peak_flops

SQUARES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384), "mps": (1024, 2048, 4096)}
"""sizes of the square matrices that are multiplied; which is fastest depends on caches and on how tiles divide it"""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PEAK_SECONDS = 1.0
"""of one measurement; it is made before the windows and again after them"""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Floating-point operations per second: the best product that was measured, its size, and the maker's figure.

    `datasheet` is None where the device is not in the table.
    """

    measured: float
    square: int
    device: str
    dtype: str
    threads: int
    datasheet: float | None


def matmul_peak(device: str, dtype: str, seconds: float = PEAK_SECONDS) -> Peak:
    """The best of a few square matrix products (N, N) @ (N, N), each 2 N^3 operations, on the device in the dtype."""
    place = torch.device(device)
    best, square = 0.0, 0
    sizes = SQUARES[place.type]
    for size in sizes:
        fastest = _fastest_product(place, DTYPES[dtype], size, seconds / len(sizes))
        if 2 * size**3 / fastest > best:
            best, square = 2 * size**3 / fastest, size
    return Peak(
        measured=best,
        square=square,
        device=device,
        dtype=dtype,
        threads=torch.get_num_threads(),
        datasheet=peak_flops(place, dtype) or None,
    )


def best_of(before: Sequence[Peak], after: Sequence[Peak]) -> list[Peak]:
    """The highest of each side's kind, of all measurements: another program can only have slowed one down."""
    best: dict[tuple[str, str, int], Peak] = {}
    for peak in (*before, *after):
        kind = (peak.device, peak.dtype, peak.threads)
        best[kind] = max(best.get(kind, peak), peak, key=lambda one: one.measured)
    return [best[peak.device, peak.dtype, peak.threads] for peak in before]


def _fastest_product(device: torch.device, dtype: torch.dtype, size: int, seconds: float) -> float:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty_like(left)
    torch.mm(left, right, out=out)
    fastest, began = float("inf"), time.perf_counter()
    while fastest == float("inf") or time.perf_counter() - began < seconds:
        synchronize(device.type)
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        synchronize(device.type)
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


def synchronize(device: str) -> None:
    """Wait until the device has done what was asked of it; a CPU always has."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()


class Clock:
    """Seconds of named parts; the device has finished before a part begins and before it ends."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the block's seconds to a part."""
        synchronize(self._device)
        started = time.perf_counter()
        yield
        synchronize(self._device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@contextlib.contextmanager
def nothing_compiled_before(folder: Path) -> Iterator[None]:
    """Keep compiled code in the folder only, so that the seconds of compiling are those of a machine that never did."""
    from torch._inductor.utils import fresh_cache

    with fresh_cache(dir=str(folder), delete=False):  # it would not delete after Ctrl-C; the folder's owner does
        yield
