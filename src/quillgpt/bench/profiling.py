"""Where the time goes, from torch's profiler: the heaviest operators, and a trace of every call to look at."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from quillgpt import files

OPERATORS = 10
HOW_TO_OPEN = "open it in https://ui.perfetto.dev or in Chrome at chrome://tracing"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator's own time, without what it calls: seconds and calls of one repetition, its share of them all."""

    name: str
    calls: float
    seconds: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The heaviest operators first, and the file of the trace."""

    operators: tuple[Operator, ...]
    trace: Path


def profiled(work: Callable[[int], object], repetitions: int, *, device: str, trace: Path) -> Profile:
    """Do the work under the profiler and write the trace; on CUDA the time is the device's."""
    on_cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    profile = torch.profiler.profile(activities=activities, acc_events=True)
    with _without_log_lines():
        profile.start()
    try:
        work(repetitions)
    finally:
        with _without_log_lines():
            profile.stop()
    with tempfile.TemporaryDirectory(prefix="quill-bench-") as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        with files.atomic_file(trace) as file:
            file.write(path.read_bytes())
    rows = [
        (event.key, event.count, (event.self_device_time_total if on_cuda else event.self_cpu_time_total) / 1e6)
        for event in profile.key_averages()
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
def _without_log_lines() -> Iterator[None]:
    """Hide what the profiler's own code writes to standard error when it starts and stops."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
