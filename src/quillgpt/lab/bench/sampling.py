"""The speed of sampling: reading a prompt (prefill) and generating token by token (decode)."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from quillgpt.checkpoint import load_model
from quillgpt.config import RunConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import CheckpointError, nearest, require
from quillgpt.lab.bench import measure
from quillgpt.lab.bench.loading import VOCABULARIES
from quillgpt.lab.bench.measure import Clock, Peak, Plan, Profile, Spread, Window, rates
from quillgpt.model.gpt import GPT
from quillgpt.model.precision import DTYPES
from quillgpt.model.sizes import lookup_parameter_count, parameter_count, prefill_flops
from quillgpt.progress import Progress, no_progress
from quillgpt.recipes import recipe_names
from quillgpt.runtime import choose_device, choose_dtype, choose_threads, detect, peak_memory_bytes
from quillgpt.sample.engine import Generator, generate_tokens
from quillgpt.sample.optimize import CompiledGPT, check_request, optimize_for_inference
from quillgpt.sample.settings import MAX_NEW_TOKENS, MAX_SAMPLES, SamplingSettings
from quillgpt.sample.weights import BYTES_PER_WEIGHT

PROMPT, NEW = "prompt tokens", "new tokens"
PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True, kw_only=True)
class SamplingWork:
    """The work of every side: read one prompt, generate `new_tokens` tokens in each of `samples` sequences."""

    samples: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 128

    def __post_init__(self) -> None:
        require("samples", self.samples, 1 <= self.samples <= MAX_SAMPLES, f"between 1 and {MAX_SAMPLES:,}")
        require("prompt_tokens", self.prompt_tokens, self.prompt_tokens >= 1, ">= 1")
        is_valid = 2 <= self.new_tokens <= MAX_NEW_TOKENS
        require(
            "new_tokens",
            self.new_tokens,
            is_valid,
            f"between 2 and {MAX_NEW_TOKENS:,}; the prefill gives the first token",
        )


@dataclass(frozen=True, kw_only=True)
class SamplingModel:
    """A model to measure, in the form in which `quill sample` generates with it."""

    name: str
    model: GPT
    device: str
    dtype: str
    threads: int
    quantize: str = "none"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that are read for every new token; lookup tables do not count."""
        config, own = self.model.config, next(self.model.parameters()).element_size()
        return round(
            (parameter_count(config) - lookup_parameter_count(config)) * BYTES_PER_WEIGHT.get(self.quantize, own)
        )


def open_for_sampling(name: str, source: str, config: RunConfig, quantize: str, *, is_recipe: bool) -> SamplingModel:
    """Open a model as `quill sample` does, or initialize random weights in a recipe's shape.

    config: device, dtype, threads, seed and compile, and for a recipe the shape.
    """
    machine = detect()
    device = choose_device(config.train.device, machine, Ranks())[0]
    requested = "fp32" if config.train.dtype == "auto" and device == "cpu" else config.train.dtype
    dtype = choose_dtype(requested, device.partition(":")[0], machine)[0]
    is_compiled = config.train.compile == "on"
    check_request(quantize, is_compiled, device.partition(":")[0])
    if is_recipe:
        torch.manual_seed(config.train.seed)
        vocab_size = VOCABULARIES.get(config.data.tokenizer, config.model.vocab_size)
        model = GPT(replace(config.model, vocab_size=vocab_size))
    else:
        model = _load_model(source)
    model = optimize_for_inference(
        model.to(torch.device(device)), dtype=DTYPES[dtype], quantize=quantize, compile=is_compiled
    )
    threads = choose_threads(config.train.threads, machine, Ranks())[0]
    return SamplingModel(name=name, model=model, device=device, dtype=dtype, threads=threads, quantize=quantize)


def _load_model(source: str) -> GPT:
    try:
        return load_model(source)[0]
    except CheckpointError as error:
        if Path(source).exists():
            raise
        suggestion = nearest(source, recipe_names())
        raise CheckpointError(f"{error}; there is no recipe of that name either{suggestion}") from None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Measurements of one side. compile_seconds: how much longer the first text took; None if not compiled."""

    name: str
    device: str
    dtype: str
    quantize: str
    compile_seconds: float | None
    threads: int
    parameters: int
    samples: int
    prompt_tokens: int
    new_tokens: int
    prefill_tokens_per_second: Spread
    prefill_mfu_measured: float
    prefill_mfu_datasheet: float | None
    decode_tokens_per_second: Spread
    weight_bytes: int
    weight_bytes_per_second: float
    peak: Peak
    memory_bytes: int
    profile: Profile | None
    windows: tuple[Window, ...]


def measure_sampling(
    models: Sequence[SamplingModel],
    work: SamplingWork,
    plan: Plan,
    folder: Path,
    *,
    traces: Sequence[Path] = (),
    progress: Progress = no_progress,
) -> list[Sampling]:
    """Measure the models in turns.

    folder: a temporary directory. traces: a file for the profiler's trace of each model; empty: no profile.
    """
    sides = [SamplingSide(model, work) for model in models]
    before = [side.peak() for side in sides]
    is_compiled = any(isinstance(model.model, CompiledGPT) for model in models)
    with measure.fresh_compile_cache(folder) if is_compiled else contextlib.nullcontext():
        compile_seconds = [side.compile_seconds() for side in sides]
        windows = measure.measure_in_turns(sides, plan, progress)
    peaks = measure.best_peaks(before, [side.peak() for side in sides])
    found = [
        side.result(own, peak, seconds)
        for side, own, peak, seconds in zip(sides, windows, peaks, compile_seconds, strict=True)
    ]
    for number, (side, trace) in enumerate(zip(sides, traces, strict=bool(traces))):
        profile = measure.profile(side, 1, device=side.model.device, trace=trace)
        found[number] = replace(found[number], profile=profile)
    return found


class SamplingSide:
    """Generates the same text again and again; a `Side` of `measure_in_turns`."""

    def __init__(self, model: SamplingModel, work: SamplingWork) -> None:
        self.model, self._work = model, work
        config = model.model.config
        length = min(work.prompt_tokens, config.context_length)
        tokens = torch.randint(config.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
        self.prompt: list[int] = tokens.tolist()

    def compile_seconds(self) -> float | None:
        """How much longer the first text takes than the second; None if nothing is compiled."""
        return self(1).seconds - self(1).seconds if isinstance(self.model.model, CompiledGPT) else None

    def __call__(self, count: int) -> Window:
        """Generate the text that many times, each time from the prompt on."""
        torch.set_num_threads(self.model.threads)
        work = self._work
        settings = SamplingSettings(max_new_tokens=work.new_tokens, num_samples=work.samples)
        parts = {PREFILL: 0.0, DECODE: 0.0}
        started = time.perf_counter()
        for _ in range(count):
            generator = _TimedPrefill(self.model, len(self.prompt) + work.new_tokens)
            tokens = generate_tokens(generator, self.prompt, settings, range(work.samples))
            next(tokens)
            first = time.perf_counter()
            for _ in tokens:
                pass
            parts[DECODE] += time.perf_counter() - first
            parts[PREFILL] += generator.clock.seconds[PREFILL]
        decoded = count * work.samples * (work.new_tokens - 1)  # the prefill gives the first token
        amounts = {PROMPT: count * len(self.prompt), NEW: decoded}
        return Window(repetitions=count, seconds=time.perf_counter() - started, amounts=amounts, parts=parts)

    def result(self, windows: Sequence[Window], peak: Peak, compile_seconds: float | None) -> Sampling:
        """The measurements of the windows, without a profile."""
        model, work, length = self.model, self._work, len(self.prompt)
        prefill, decode = rates(windows, PROMPT, PREFILL), rates(windows, NEW, DECODE)
        by_measurement, by_datasheet = peak.shares(prefill.median / length * prefill_flops(model.model.config, length))
        return Sampling(
            name=model.name,
            device=model.device,
            dtype=model.dtype,
            quantize=model.quantize,
            compile_seconds=compile_seconds,
            threads=model.threads,
            parameters=parameter_count(model.model.config),
            samples=work.samples,
            prompt_tokens=length,
            new_tokens=work.new_tokens,
            prefill_tokens_per_second=prefill,
            prefill_mfu_measured=by_measurement,
            prefill_mfu_datasheet=by_datasheet,
            decode_tokens_per_second=decode,
            weight_bytes=model.weight_bytes,
            weight_bytes_per_second=decode.median / work.samples * model.weight_bytes,
            peak=peak,
            memory_bytes=peak_memory_bytes(torch.device(model.device)),
            profile=None,
            windows=tuple(windows),
        )

    def peak(self) -> Peak:
        """The peak with this model's threads and dtype."""
        torch.set_num_threads(self.model.threads)
        return measure.measure_peak(self.model.device, self.model.dtype)


class _TimedPrefill(Generator):
    """The generator of `quill sample`, with a clock for its prefill."""

    def __init__(self, model: SamplingModel, capacity: int) -> None:
        super().__init__(model.model, capacity)
        self.clock = Clock(model.device)

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read the prompts (B, T); return the next token's logits (B, V)."""
        with self.clock(PREFILL):
            return super().prefill(tokens)
