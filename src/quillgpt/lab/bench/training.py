"""The speed of training: the steps of a run, with its loader, its update and its lines of metrics.

A side sets up a run in a temporary directory and calls `one_step` as the training loop does. The parts of a step are
timed around the calls of the loader, the forward pass and the optimizer; the rest of the step is the backward pass.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quillgpt import files
from quillgpt.config import RunConfig, updated
from quillgpt.distributed import Ranks
from quillgpt.lab.bands import BandWatch
from quillgpt.lab.bench import measure
from quillgpt.lab.bench.measure import Clock, Peak, Plan, Profile, Spread, Window, rates, synchronize
from quillgpt.model.sizes import flops_per_token, parameter_count
from quillgpt.progress import Progress, no_progress
from quillgpt.runtime import Runtime, check_memory, detect, peak_memory_bytes, resolve, set_up_torch
from quillgpt.training.attention_stats import AttentionMonitor
from quillgpt.training.calibrate import calibrate
from quillgpt.training.loop import every, one_step
from quillgpt.training.metrics import Metrics
from quillgpt.training.screen import Screen
from quillgpt.training.setup import TrainingComponents, build, check_menus, load, opened_run
from quillgpt.training.step import Guard

TOKENS = "tokens"
PARTS = ("data", "forward", "backward", "optimizer", "logging")
FORMULA = (
    "MFU = tokens/s x FLOPs per token / peak; FLOPs per token = 6 N + 12 L C T (N weights without lookup tables, "
    "L layers, C channels, T context, attention in full) [Chowdhery 2022, B]; a frozen weight under LoRA costs 4"
)
PROFILED_STEPS = 3
NOT_MEASURED = {"minutes": 0.0, "track": "none", "eval_tasks": "", "batch_ramp": ""}
"""settings of a run that a benchmark overrides"""

Timer = Callable[[str], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Measurements of one side. memory_bytes: peak of the process; part_seconds: of one step."""

    name: str
    runtime: Runtime
    parameters: int
    flops_per_token: int
    tokens_per_step: int
    tokens_per_second: Spread
    step_seconds: Spread
    part_seconds: dict[str, float]
    mfu_measured: float
    mfu_datasheet: float | None
    peak: Peak
    memory_bytes: int
    compile_seconds: float | None
    profile: Profile | None
    windows: tuple[Window, ...]


def measure_training(
    sides: Sequence[tuple[str, RunConfig]],
    plan: Plan,
    folder: Path,
    screen: Screen,
    *,
    traces: Sequence[Path] = (),
    progress: Progress = no_progress,
) -> list[Training]:
    """Measure the sides, each a name and settings, in turns.

    folder: a temporary directory. traces: a file for the profiler's trace of each side; empty: no profile.
    """
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(open_side(config, folder / str(number), screen))
            for number, (_, config) in enumerate(sides)
        ]
        before = [run.peak() for run in runs]
        windows = measure.measure_in_turns(runs, plan, progress)
        peaks = measure.best_peaks(before, [run.peak() for run in runs])
        found = [
            run.result(name, own, peak) for (name, _), run, own, peak in zip(sides, runs, windows, peaks, strict=True)
        ]
        for number, (run, trace) in enumerate(zip(runs, traces, strict=bool(traces))):
            found[number] = replace(found[number], profile=run.profile(trace))
        return found


@contextlib.contextmanager
def open_side(config: RunConfig, folder: Path, screen: Screen) -> Iterator["TrainingSide"]:
    """Set up a run in the folder as `quill train` does, up to its first step."""
    config = updated(config, {**NOT_MEASURED, "out": str(folder / "run")}, where="quill bench")
    check_menus(config)
    files.make_directory(folder)
    ranks, machine = Ranks(), detect()
    runtime, _ = resolve(config, machine, ranks)
    check_memory(config, runtime, machine, ranks)
    with contextlib.ExitStack() as stack:
        if runtime.compile:
            stack.enter_context(measure.fresh_compile_cache(folder))
        run = stack.enter_context(opened_run(config.train.out, ranks))
        loaded = load(run, config, runtime, ranks, screen)
        parts = build(run, config, loaded, calibrate(config, loaded, ranks), ranks)
        metrics = stack.enter_context(Metrics(run, config, parts, ranks))
        monitor = AttentionMonitor(model=parts.model, runtime=parts.runtime, is_main_process=True)
        watch = BandWatch()
        watch.start(run.path)
        yield TrainingSide(config, parts, metrics, monitor, watch)


class TrainingSide:
    """A run that takes steps in its turn; a `Side` of `measure_in_turns`."""

    def __init__(
        self,
        config: RunConfig,
        parts: TrainingComponents,
        metrics: Metrics,
        monitor: AttentionMonitor,
        watch: BandWatch,
    ) -> None:
        self.config, self.parts, self.runtime, self.model = config, parts, parts.runtime, parts.model.config
        self._metrics, self._monitor, self._watch = metrics, monitor, watch
        self._guard = Guard()
        self._times_parts = parts.runtime.device == "cpu"  # on a GPU a clock would wait for the device

    def __call__(self, steps: int) -> Window:
        """Take that many steps; on a CPU the window has the seconds of their parts."""
        self._set_up_torch()
        return self._window(steps, times_parts=self._times_parts)

    def part_seconds(self, windows: Sequence[Window]) -> dict[str, float]:
        """Seconds of each part of a step, from the windows or, where they have no parts, from one more window."""
        if not self._times_parts:
            self._set_up_torch()
            windows = [self._window(windows[0].repetitions, times_parts=True)]
        steps = sum(window.repetitions for window in windows)
        return {name: sum(window.parts[name] for window in windows) / steps for name in (*PARTS, "other")}

    def result(self, name: str, windows: Sequence[Window], peak: Peak) -> Training:
        """The measurements of the windows, without a profile."""
        speed, flops = rates(windows, TOKENS), flops_per_token(self.model, self.config.lora.lora_rank)
        by_measurement, by_datasheet = peak.shares(speed.median * flops)
        return Training(
            name=name,
            runtime=self.runtime,
            parameters=parameter_count(self.model),
            flops_per_token=flops,
            tokens_per_step=self.runtime.global_batch_size * self.model.context_length,
            tokens_per_second=speed,
            step_seconds=Spread.of([window.seconds / window.repetitions for window in windows]),
            part_seconds=self.part_seconds(windows),
            mfu_measured=by_measurement,
            mfu_datasheet=by_datasheet,
            peak=peak,
            memory_bytes=peak_memory_bytes(torch.device(self.runtime.device)),
            compile_seconds=self.parts.compile_seconds if self.runtime.compile else None,
            profile=None,
            windows=tuple(windows),
        )

    def peak(self) -> Peak:
        """The peak with this side's threads and dtype."""
        self._set_up_torch()
        return measure.measure_peak(self.runtime.device, self.runtime.dtype)

    def profile(self, trace: Path) -> Profile:
        """Profile a few steps; the trace names their parts."""
        self._set_up_torch()
        steps = partial(self._run, timer=torch.profiler.record_function)
        return measure.profile(steps, PROFILED_STEPS, device=self.runtime.device, trace=trace)

    def _set_up_torch(self) -> None:
        torch.use_deterministic_algorithms(False)
        runtime = self.runtime
        set_up_torch(runtime.device, threads=runtime.threads, matmul_precision=runtime.matmul_precision)

    def _window(self, steps: int, *, times_parts: bool) -> Window:
        total, clock = Clock(self.runtime.device), Clock(self.runtime.device)
        before = self.parts.state.tokens
        with total("steps"):
            self._run(steps, clock if times_parts else None)
        seconds = total.seconds["steps"]
        return Window(
            repetitions=steps,
            seconds=seconds,
            amounts={TOKENS: self.parts.state.tokens - before},
            parts=separate_parts(clock.seconds, seconds) if times_parts else {},
        )

    def _run(self, steps: int, timer: Timer | None) -> None:
        """What the training loop does in steps without evaluation and checkpoint."""
        state, settings = self.parts.state, self.config.train
        timed = timer or (lambda name: contextlib.nullcontext())
        with timed_calls(self.parts, timer) if timer else contextlib.nullcontext(self.parts) as parts:
            for _ in range(steps):
                with timed("step"):
                    step = one_step(parts, self.config, self._guard, Ranks())
                with timed("logging"):
                    line = self._metrics.line(step, None)
                    if every(state.step, settings.log_every):
                        line |= self._watch.judge(line)
                        self._metrics.write(line | self._monitor.measure(step.inputs, state.step))
        synchronize(self.runtime.device)


@contextlib.contextmanager
def timed_calls(parts: TrainingComponents, timer: Timer) -> Iterator[TrainingComponents]:
    """In the block, time reading a batch, the forward pass with the loss, and the optimizer's step."""

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **settings: Any) -> Any:
            with timer(name):
                return call(*arguments, **settings)

        return run

    loader, optimizer = parts.loader, parts.optimizer
    calls = [(loader, "batch", "data"), (optimizer, "step", "optimizer"), (optimizer, "zero_grad", "optimizer")]
    for owner, method, name in calls:
        setattr(owner, method, timed(name, getattr(owner, method)))  # an attribute of the object hides the method
    try:
        step = parts.wrapped_model
        yield replace(parts, wrapped_model=replace(step, forward=timed("forward", step.forward)))
    finally:
        for owner, method, _ in calls:
            delattr(owner, method)


def separate_parts(seconds: dict[str, float], total: float) -> dict[str, float]:
    """Seconds of each part; the backward pass is what the timed calls leave of a step."""
    found = {name: seconds.get(name, 0.0) for name in PARTS}
    found["backward"] = seconds["step"] - found["data"] - found["forward"] - found["optimizer"]
    return found | {"other": total - sum(found.values())}
