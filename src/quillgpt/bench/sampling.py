"""The speed of sampling: reading a prompt (prefill) and writing token by token (decode), by the code that samples."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quillgpt.bench.machine import Clock, Peak, best_of, matmul_peak
from quillgpt.bench.profiling import Profile, profiled
from quillgpt.bench.windows import Plan, Progress, Window, in_turn
from quillgpt.errors import require
from quillgpt.hardware import peak_memory_bytes
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import looked_up, parameter_count, prefill_flops
from quillgpt.sample.compiled import CompiledGPT
from quillgpt.sample.generator import Generator, continued
from quillgpt.sample.settings import MAX_NEW_TOKENS, MAX_SAMPLES, SamplingSettings
from quillgpt.sample.weights import BYTES_PER_WEIGHT

PROMPT, NEW = "prompt tokens", "new tokens"
PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is written: so many samples of `new_tokens` each, after one prompt."""

    samples: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 128

    def __post_init__(self) -> None:
        require("samples", self.samples, 1 <= self.samples <= MAX_SAMPLES, f"1 to {MAX_SAMPLES:,}")
        require("prompt_tokens", self.prompt_tokens, self.prompt_tokens >= 1, "1 or more")
        is_possible = 2 <= self.new_tokens <= MAX_NEW_TOKENS
        require("new_tokens", self.new_tokens, is_possible, f"2 to {MAX_NEW_TOKENS:,}; the prefill gives the first")


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A model to measure, as it samples: on its device and in its dtype."""

    name: str
    model: GPT
    device: str
    dtype: str
    threads: int
    quantize: str = "none"

    @property
    def is_compiled(self) -> bool:
        """Whether its first step compiles."""
        return isinstance(self.model, CompiledGPT)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What was measured of one side. `weight_bytes` are read for every new token, lookup tables not counted.

    `compile_seconds` are those of the first text beyond those of the second; None where nothing is compiled.
    """

    name: str
    device: str
    dtype: str
    quantize: str
    compile_seconds: float | None
    threads: int
    parameters: int
    weight_bytes: int
    samples: int
    prompt_tokens: int
    new_tokens: int
    prefill_flops: int
    windows: tuple[Window, ...]
    peak: Peak
    memory_bytes: int
    profile: Profile | None


def measure_sampling(
    sides: Sequence[Sampled],
    task: Task,
    plan: Plan,
    *,
    traces: Sequence[Path] = (),
    progress: Progress = lambda what, done, count: None,
) -> list[Sampling]:
    """Measure each model in turn with the others."""
    opened = [_Writer(side, task) for side in sides]
    peaks = [writer.peak() for writer in opened]
    compile_seconds = [writer.compile_seconds() for writer in opened]
    windows = in_turn(opened, plan, progress)
    peaks = best_of(peaks, [writer.peak() for writer in opened])
    memory = [peak_memory_bytes(torch.device(side.device)) for side in sides]
    profiles = [
        profiled(writer, 1, device=writer.side.device, trace=trace)
        for writer, trace in zip(opened, traces, strict=bool(traces))
    ]
    return [
        Sampling(
            name=side.name,
            device=side.device,
            dtype=side.dtype,
            quantize=side.quantize,
            compile_seconds=compile_seconds[number],
            threads=side.threads,
            parameters=parameter_count(side.model.config),
            weight_bytes=_weight_bytes(side),
            samples=task.samples,
            new_tokens=task.new_tokens,
            prompt_tokens=len(opened[number].prompt),
            prefill_flops=prefill_flops(side.model.config, len(opened[number].prompt)),
            windows=tuple(windows[number]),
            peak=peaks[number],
            memory_bytes=memory[number],
            profile=profiles[number] if profiles else None,
        )
        for number, side in enumerate(sides)
    ]


class _Writer:
    """Writes the same samples again and again."""

    def __init__(self, side: Sampled, task: Task) -> None:
        self.side, self._task = side, task
        length = min(task.prompt_tokens, side.model.config.context_length)
        drawn = torch.randint(side.model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
        self.prompt: list[int] = drawn.tolist()

    def compile_seconds(self) -> float | None:
        """How much longer the first text takes than the second, if its step is compiled."""
        if not self.side.is_compiled:
            return None
        first, second = self(1).seconds, self(1).seconds
        return first - second

    def __call__(self, count: int) -> Window:
        """The samples so many times, each time from the prompt on."""
        self._take_over()
        settings = SamplingSettings(max_new_tokens=self._task.new_tokens, num_samples=self._task.samples)
        parts = {PREFILL: 0.0, DECODE: 0.0}
        began = time.perf_counter()
        for _ in range(count):
            generator = _TimedPrefill(self.side, len(self.prompt) + self._task.new_tokens)
            tokens = continued(generator, self.prompt, settings, range(self._task.samples))
            next(tokens)
            first = time.perf_counter()
            for _ in tokens:
                pass
            parts[DECODE] += time.perf_counter() - first
            parts[PREFILL] += generator.clock.seconds[PREFILL]
        written = count * self._task.samples * (self._task.new_tokens - 1)  # the prefill gave the first ones
        return Window(
            repetitions=count,
            seconds=time.perf_counter() - began,
            amounts={PROMPT: count * len(self.prompt), NEW: written},
            parts=parts,
        )

    def peak(self) -> Peak:
        """The measured peak with this side's threads."""
        self._take_over()
        return matmul_peak(self.side.device, self.side.dtype)

    def _take_over(self) -> None:
        torch.set_num_threads(self.side.threads)


class _TimedPrefill:
    """The generator of `quill sample`, with a clock on its prefill."""

    def __init__(self, side: Sampled, room: int) -> None:
        self._generator = Generator(side.model, room)
        self.clock = Clock(side.device)

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read the prompts (B, T); return the next token's logits (B, V)."""
        with self.clock(PREFILL):
            return self._generator.prefill(tokens)

    def fork(self, samples: int) -> None:
        """Continue the one sequence read so far as several."""
        self._generator.fork(samples)

    def decode(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence (B,); return the next token's logits (B, V)."""
        return self._generator.decode(tokens)


def _weight_bytes(side: Sampled) -> int:
    config, own = side.model.config, next(side.model.parameters()).element_size()
    return round((parameter_count(config) - looked_up(config)) * BYTES_PER_WEIGHT.get(side.quantize, own))
