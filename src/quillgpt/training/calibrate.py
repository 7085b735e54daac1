"""What a run has to measure before its runtime is frozen: CPU threads, steps for a run in minutes, torch.compile.

The measurements are short and use copies of model and optimizer and random tokens; they leave torch's random state.
"""

import copy
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from quillgpt.config import RunConfig, batch_plan, stage_batch_sizes
from quillgpt.distributed import Ranks, all_reduce_sum, broadcast_int
from quillgpt.evaluate.loss import evaluate_loss
from quillgpt.model.gpt import GPT
from quillgpt.model.precision import DTYPES
from quillgpt.optim import build_optimizer
from quillgpt.runtime import Runtime
from quillgpt.training.setup import Calibration, Data, LoadedRun
from quillgpt.training.step import WrappedModel, gradients, wrap

logger = logging.getLogger(__name__)

WARMUP_SECONDS = 1.5  # the first steps fill caches and memory pools
MEASURE_SECONDS = 5.0
THREADS_SECONDS = 0.6  # for each number of threads
CLEARLY = 0.9  # of the time on twice as many threads: a smaller gain is not worth other bits


def calibrate(config: RunConfig, loaded: LoadedRun, ranks: Ranks) -> Calibration:
    """Measure what is not stated, threads and steps of a run in minutes, and try the compiler; freeze the runtime."""
    runtime, model, reasons, step = loaded.runtime, loaded.model, {}, None
    if _measures_threads(config, loaded):
        threads, reasons["threads"] = fastest_threads(config, runtime, model)
        runtime = replace(runtime, threads=threads)
        torch.set_num_threads(threads)
    if config.train.minutes and not runtime.steps:
        first = loaded.state.step
        steps = steps_for_minutes(config, runtime, model, loaded.data, first) if ranks.is_main_process else 0
        steps = broadcast_int(steps, ranks, torch.device(runtime.device))
        text = "%g minutes are about %s steps here; training to step %s"
        logger.info(text, config.train.minutes, f"{steps:,}", f"{first + steps:,}")
        runtime = replace(runtime, steps=first + steps)
    started = time.perf_counter()
    if runtime.compile:
        step = _compiled(model, runtime, ranks)
        runtime = replace(runtime, compile=step is not None)
    seconds = time.perf_counter() - started if step is not None else 0.0
    return Calibration(runtime=runtime, reasons=reasons, wrapped_model=step, compile_seconds=seconds)


def _measures_threads(config: RunConfig, loaded: LoadedRun) -> bool:
    """Whether the number of threads is measured: only where the number of steps is, because both change the bits.

    A run of a stated number of steps repeats itself bit for bit, and so does a resumed run.
    """
    runtime = loaded.runtime
    is_new = loaded.state.step == 0 and runtime.steps == 0 and config.train.minutes > 0
    is_alone = runtime.world_size == 1 and runtime.device == "cpu" and not runtime.compile
    return is_new and is_alone and not config.train.threads and runtime.threads > 1


# torch.compile


def _compiled(model: GPT, runtime: Runtime, ranks: Ranks) -> WrappedModel | None:
    """Return the compiled step; None, with a message, if compiling fails on any rank.

    The trial runs a batch of zeros and drops the gradients. With several ranks it runs on a copy, because a second
    DistributedDataParallel around the same weights does not replace the first.
    """
    alone = replace(runtime, world_size=1)
    trial = copy.deepcopy(model) if ranks.is_distributed else model
    step = wrap(trial, alone)
    failure = _compile_failure(step, alone, trial.config.context_length)
    trial.zero_grad(set_to_none=True)
    if all_reduce_sum(torch.tensor(int(failure != ""), device=runtime.device), ranks).item():
        logger.info("compile: off, because it failed here: %s", failure or "on another rank")
        return None
    return wrap(model, runtime, ranks) if ranks.is_distributed else step


def _compile_failure(step: WrappedModel, runtime: Runtime, context_length: int) -> str:
    """Return why the compiled step does not run, in one line; empty if it does."""
    from torch._dynamo.exc import TorchDynamoException

    tokens = torch.zeros(runtime.micro_batch_size, context_length, dtype=torch.int64)
    try:
        gradients(step, tokens, tokens, runtime=runtime, target_count=tokens.numel(), seed=0, step=0, rank=0)
    except (RuntimeError, TorchDynamoException, ImportError, OSError) as error:
        torch._dynamo.reset()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])  # "backend=... raised:", then by what
    return ""


# Steps for a run in minutes


def steps_for_minutes(config: RunConfig, runtime: Runtime, model: GPT, data: Data, first: int = 0) -> int:
    """Return the steps from step `first` that, with their evaluations, take about `minutes` here; at least 1.

    Every batch size of a ramp is measured.
    """
    ramp, batch_size, every = config.train.batch_ramp, runtime.global_batch_size, config.train.eval_every
    sizes = stage_batch_sizes(ramp, batch_size)
    with torch.random.fork_rng(enabled=True):
        seconds = {
            size: _step_seconds(config, replace(runtime, global_batch_size=size), model, patience=1 / len(sizes))
            for size in sizes
        }
        evaluation = _evaluation_seconds(runtime, model, data)
    return steps_within(
        60.0 * config.train.minutes - evaluation,  # the last evaluation is always made
        ramp=ramp,
        batch_size=batch_size,
        first=first,
        seconds=seconds.__getitem__,
        overhead_seconds=evaluation / every if every else 0.0,
    )


def steps_within(
    budget_seconds: float,
    *,
    ramp: str,
    batch_size: int,
    first: int,
    seconds: Callable[[int], float],
    overhead_seconds: float = 0.0,
) -> int:
    """Return the largest number of steps from step `first` that the budget has time for, at least 1.

    A step of n sequences takes `seconds(n)` plus the overhead. The ramp is stretched over all steps, so their number is
    found by bisection: more steps never take less time.
    """

    def needed(count: int) -> float:
        plan = batch_plan(ramp, batch_size=batch_size, steps=first + count)
        ends = [*(step for step, _ in plan[1:]), first + count]
        parts = [(max(0, end - max(first, begin)), size) for (begin, size), end in zip(plan, ends, strict=True)]
        return sum(length * (seconds(size) + overhead_seconds) for length, size in parts if length)

    low, high = 1, 2
    while needed(high) <= budget_seconds:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) <= budget_seconds else (low, middle)
    return low


def _step_seconds(config: RunConfig, runtime: Runtime, model: GPT, *, patience: float) -> float:
    """Return the time of a step: the median, so that a short interruption by another program does not count."""
    step = _trial_step(config, runtime, model)
    _times(step, patience * WARMUP_SECONDS, at_least=1)
    return statistics.median(_times(step, patience * MEASURE_SECONDS, at_least=2))


def _evaluation_seconds(runtime: Runtime, model: GPT, data: Data) -> float:
    """Return the time of an entire evaluation, extrapolated from a part of it."""
    tokens = data.validation.target_count
    part = min(tokens, max(1, 4 * runtime.micro_batch_size) * data.validation.context_length)
    started = time.perf_counter()
    evaluate_loss(
        model,
        replace(data.validation, max_tokens=part),
        data.bytes_per_token,
        batch_size=runtime.micro_batch_size,
        device=runtime.device,
        dtype=DTYPES[runtime.dtype],
    )
    return (time.perf_counter() - started) * tokens / part


# Threads


def fastest_threads(config: RunConfig, runtime: Runtime, model: GPT) -> tuple[int, str]:
    """Return the number of threads that trains fastest here, at most the resolved one, and the measurement in words.

    Half as many are tried as long as that is clearly faster: a small network has little to share out, and a core that
    another program uses makes the others wait. torch's number of threads is restored.
    """
    before, seconds = torch.get_num_threads(), {}
    with torch.random.fork_rng(enabled=True):
        step = _trial_step(config, runtime, model)
        threads = best = runtime.threads
        torch.set_num_threads(threads)
        step()  # fills memory pools
        while threads:
            torch.set_num_threads(threads)
            seconds[threads] = statistics.mean(_times(step, THREADS_SECONDS, at_least=3))  # others' time counts here
            if threads != best and seconds[threads] > CLEARLY * seconds[best]:
                break
            best, threads = threads, threads // 2
    torch.set_num_threads(before)
    return best, "measured: " + ", ".join(f"{count}: {1e3 * took:,.0f} ms a step" for count, took in seconds.items())


def _times(step: Callable[[], None], seconds: float, *, at_least: int) -> list[float]:
    """Make steps for the given time, and at least a number; return the seconds of each."""
    times: list[float] = []
    while len(times) < at_least or sum(times) < seconds:
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return times


def _trial_step(config: RunConfig, runtime: Runtime, model: GPT) -> Callable[[], None]:
    """Return a function that makes a training step on copies, with random tokens."""
    trial = copy.deepcopy(model)
    optimizer = build_optimizer(trial, config.optim)
    wrapped = wrap(trial, runtime)
    shape = (max(1, runtime.global_batch_size // runtime.world_size), trial.config.context_length + 1)
    tokens = torch.randint(trial.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    numbers = {"target_count": tokens[:, 1:].numel(), "seed": 0, "step": 0, "rank": 0}

    def step() -> None:
        gradients(wrapped, tokens[:, :-1], tokens[:, 1:], runtime=runtime, **numbers).item()
        torch.nn.utils.get_total_norm([x.grad for x in trial.parameters() if x.grad is not None])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
