"""The speed of training: the very steps of a run, with its loader, its update and its lines of metrics.

Nothing of `train/` is copied: a side sets a run up in a temporary directory and calls `one_step` as the loop does.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from quillgpt import files
from quillgpt.bench.machine import Clock, Peak, best_of, matmul_peak, nothing_compiled_before, synchronize
from quillgpt.bench.profiling import Profile, profiled
from quillgpt.bench.windows import Plan, Progress, Window, in_turn
from quillgpt.config import RunConfig, updated
from quillgpt.distributed import Ranks
from quillgpt.hardware import detect, peak_memory_bytes
from quillgpt.model.sizes import flops_per_token, parameter_count
from quillgpt.train import loop
from quillgpt.train.band_watch import BandWatch
from quillgpt.train.guard import Guard
from quillgpt.train.kernel_statistics import KernelMonitor
from quillgpt.train.loop import every, one_step
from quillgpt.train.metrics import Metrics
from quillgpt.train.progress import Screen
from quillgpt.train.resolve import Choices, check_memory, resolve
from quillgpt.train.setup import Parts, opened_run, set_up, set_up_torch
from quillgpt.train.signals import StopRequest

TOKENS = "tokens"
PARTS = ("data", "forward", "backward", "optimizer", "logging")
FORMULA = (
    "MFU = tokens/s x FLOPs a token / peak; FLOPs a token = 6 N + 12 L C T (N weights without lookup tables, L layers, "
    "C channels, T context, attention in full) [Chowdhery 2022, B]; a frozen weight under LoRA costs 4"
)
PROFILED_STEPS = 3
NOT_OF_A_RUN = {"minutes": 0.0, "track": "none", "eval_tasks": "", "batch_ramp": ""}
"""settings that a measurement has no use for"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What was measured of one side. `parts` are seconds of a step; `memory_bytes` is the whole process's peak."""

    name: str
    choices: Choices
    parameters: int
    flops_per_token: int
    tokens_per_step: int
    windows: tuple[Window, ...]
    parts: dict[str, float]
    peak: Peak
    memory_bytes: int
    compile_seconds: float
    profile: Profile | None


def measure_training(
    sides: Sequence[tuple[str, RunConfig]],
    plan: Plan,
    folder: Path,
    screen: Screen,
    *,
    traces: Sequence[Path] = (),
    progress: Progress = lambda what, done, count: None,
) -> list[Training]:
    """Measure each side, a name and its settings, in turn with the others; `folder` is a temporary one.

    `traces`: a file for the profiler's trace of each side, where there is to be one.
    """
    with contextlib.ExitStack() as stack:
        opened = []
        for number, (_, config) in enumerate(sides):
            own = folder / str(number)
            files.make_directory(own)
            opened.append(stack.enter_context(_opened(config, own, screen)))
        peaks = [side.peak() for side in opened]
        windows = in_turn(opened, plan, progress)
        peaks = best_of(peaks, [side.peak() for side in opened])
        parts = [side.parts(own) for side, own in zip(opened, windows, strict=True)]
        memory = [peak_memory_bytes(torch.device(side.choices.device)) for side in opened]
        profiles = [side.profiled(trace) for side, trace in zip(opened, traces, strict=True)] if traces else []
        return [
            Training(
                name=name,
                choices=side.choices,
                parameters=parameter_count(side.model),
                flops_per_token=flops_per_token(side.model, side.config.lora.lora_rank),
                tokens_per_step=side.choices.rows * side.model.context_length,
                windows=tuple(windows[number]),
                parts=parts[number],
                peak=peaks[number],
                memory_bytes=memory[number],
                compile_seconds=side.compile_seconds,
                profile=profiles[number] if profiles else None,
            )
            for number, ((name, _), side) in enumerate(zip(sides, opened, strict=True))
        ]


@contextlib.contextmanager
def _opened(config: RunConfig, folder: Path, screen: Screen) -> Iterator["_Side"]:
    """A run in the folder, set up as a run is, that stands before its first step."""
    config = updated(config, {**NOT_OF_A_RUN, "out": str(folder / "run")}, where="quill bench")
    ranks, machine = Ranks(), detect()
    choices, _ = resolve(config, machine, ranks)
    check_memory(config, choices, machine, ranks)
    with contextlib.ExitStack() as stack:
        if choices.compile:
            stack.enter_context(nothing_compiled_before(folder))
        run = stack.enter_context(opened_run(config.train.out, ranks))
        parts = set_up(run, config, choices, ranks, screen)
        model, choices = parts.model.config, parts.choices
        metrics = stack.enter_context(
            Metrics(run, config, model, choices, parts.position, is_first=True, say=screen.say)
        )
        monitor = KernelMonitor(model=parts.model, choices=choices, is_first=True, say=screen.say)
        watch = BandWatch(run, config, parts.data.train.fingerprint, is_first=True, say=lambda text: None)
        yield _Side(config, parts, metrics, monitor, watch, screen.say)


class _Side:
    """Takes steps of one run when it is its turn."""

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        metrics: Metrics,
        monitor: KernelMonitor,
        watch: BandWatch,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.choices, self.model = config, parts.choices, parts.model.config
        self.compile_seconds = parts.compile_seconds
        self._parts, self._metrics, self._monitor, self._watch, self._say = parts, metrics, monitor, watch, say
        self._guard = Guard()
        self._is_timed = parts.choices.device == "cpu"

    def __call__(self, steps: int) -> Window:
        """So many steps; on a CPU with the seconds of their parts, elsewhere without, because a clock would wait."""
        self._take_over()
        return self._steps(steps, Clock(self.choices.device) if self._is_timed else None)

    def parts(self, windows: Sequence[Window]) -> dict[str, float]:
        """Seconds of each part of a step, over the windows or, where they have no parts, over one more."""
        if not self._is_timed:
            self._take_over()
            windows = [self._steps(windows[0].repetitions, Clock(self.choices.device))]
        steps = sum(window.repetitions for window in windows)
        return {name: sum(window.parts[name] for window in windows) / steps for name in (*PARTS, "other")}

    def peak(self) -> Peak:
        """The measured peak with this side's threads and precision."""
        self._take_over()
        return matmul_peak(self.choices.device, self.choices.dtype)

    def profiled(self, trace: Path) -> Profile:
        """A few steps under the profiler, their parts named in the trace."""
        self._take_over()

        def steps(count: int) -> None:
            self._run(count, torch.profiler.record_function)

        return profiled(steps, PROFILED_STEPS, device=self.choices.device, trace=trace)

    def _take_over(self) -> None:
        """The process-wide settings are this side's from here on."""
        choices = self.choices
        torch.use_deterministic_algorithms(False)
        set_up_torch(choices.device, threads=choices.threads, matmul_precision=choices.matmul_precision)

    def _steps(self, steps: int, clock: Clock | None) -> Window:
        whole = Clock(self.choices.device)
        before = self._parts.position.tokens
        with whole("steps"):
            self._run(steps, clock or loop.untimed)
        seconds = whole.seconds["steps"]
        return Window(
            repetitions=steps,
            seconds=seconds,
            amounts={TOKENS: self._parts.position.tokens - before},
            parts=_told_apart(clock.seconds, seconds) if clock else {},
        )

    def _run(self, steps: int, clock: loop.Clock) -> None:
        """What the loop does at a step that is neither evaluated nor saved."""
        position, settings = self._parts.position, self.config.train
        parts = replace(self._parts, wrapped=replace(self._parts.wrapped, forward=_timed(self._parts, clock)))
        for _ in range(steps):
            step = one_step(
                parts, self.config, self._guard, ranks=Ranks(), request=StopRequest(), say=self._say, clock=clock
            )
            with clock("logging"):
                line = self._metrics.line(
                    position, loss=step.loss, lr=step.lr, norm=step.norm, applied=step.applied, held_out=None
                )
                if every(position.step, settings.log_every):
                    self._metrics.write(
                        line | self._monitor.look(step.inputs, position.step) | self._watch.judged(line)
                    )
        synchronize(self.choices.device)


def _timed(parts: Parts, clock: loop.Clock) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The forward pass, loss included, as a part of its own."""
    forward = parts.wrapped.forward

    def timed(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with clock("forward"):
            return forward(tokens, targets)

    return timed


def _told_apart(seconds: dict[str, float], whole: float) -> dict[str, float]:
    """Seconds of each part: the gradients' without the forward pass inside them are the backward pass's."""
    found = {name: seconds.get(name, 0.0) for name in PARTS}
    found["backward"] = seconds["gradients"] - seconds["forward"]
    return found | {"other": whole - sum(found.values())}
