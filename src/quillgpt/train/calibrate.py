"""How many steps fit into some minutes, and on how many threads: short measurements on a throw-away copy."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from quillgpt.config import RunConfig
from quillgpt.evaluate.held_out_loss import evaluate_held_out
from quillgpt.model.gpt import GPT
from quillgpt.optim import build_optimizer
from quillgpt.train.batch_ramp import stage_rows, steps_within
from quillgpt.train.open_data import Data
from quillgpt.train.resolve import DTYPES, Choices
from quillgpt.train.update import Wrapped, gradients, wrap

WARMUP_SECONDS = 1.5  # the first steps fill caches and memory pools
MEASURE_SECONDS = 5.0
FEWEST_STEPS = 3
THREADS_SECONDS = 0.6  # for each number of threads
CLEARLY = 0.9  # of the time of twice as many: less gain than that is not worth other bits


def steps_for_minutes(config: RunConfig, choices: Choices, model: GPT, data: Data, first: int = 0) -> int:
    """Steps after which training, with its evaluations, has taken about `minutes` here, from step `first`; at least 1.

    Model and optimizer are copies, the tokens are drawn for it, and torch's random state is put back. Of a batch that
    grows every size is measured.
    """
    sizes = stage_rows(config.train.batch_ramp, choices.rows)
    with torch.random.fork_rng(enabled=True):
        seconds = {
            rows: _step_seconds(config, replace(choices, rows=rows), model, patience=1 / len(sizes)) for rows in sizes
        }
        seconds_per_evaluation = _evaluation_seconds(choices, model, data)
    budget = 60.0 * config.train.minutes - seconds_per_evaluation  # the last evaluation is always made
    every = config.train.eval_every
    return steps_within(
        budget,
        ramp=config.train.batch_ramp,
        rows=choices.rows,
        first=first,
        seconds=seconds.__getitem__,
        besides=seconds_per_evaluation / every if every else 0.0,
    )


def fastest_threads(config: RunConfig, choices: Choices, model: GPT) -> tuple[int, str]:
    """How many threads train fastest here and now, up to the chosen ones, and the measurement in a few words.

    Half as many are tried as long as that is clearly faster: a small network has little to share out, and a core that
    another program uses makes the others wait. The same copies as above; torch is left with the threads it had.
    """
    before, seconds = torch.get_num_threads(), {}
    with torch.random.fork_rng(enabled=True):
        step = _trial_step(config, choices, model)
        threads = best = choices.threads
        torch.set_num_threads(threads)
        step()  # fills memory pools
        while threads:
            torch.set_num_threads(threads)
            seconds[threads] = _mean_seconds(step)
            if threads != best and seconds[threads] > CLEARLY * seconds[best]:
                break
            best, threads = threads, threads // 2
    torch.set_num_threads(before)
    return best, "measured: " + ", ".join(f"{count}: {1e3 * took:,.0f} ms a step" for count, took in seconds.items())


def _mean_seconds(step: Callable[[], None]) -> float:
    """The mean, because here what other programs take is what is asked for."""
    began, count = time.perf_counter(), 0
    while count < FEWEST_STEPS or time.perf_counter() - began < THREADS_SECONDS:
        step()
        count += 1
    return (time.perf_counter() - began) / count


def _step_seconds(config: RunConfig, choices: Choices, model: GPT, *, patience: float) -> float:
    step = _trial_step(config, choices, model)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < FEWEST_STEPS or time.perf_counter() - began < patience * (WARMUP_SECONDS + MEASURE_SECONDS):
        started = time.perf_counter()
        step()
        if started - began >= patience * WARMUP_SECONDS or not times:
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])  # what other programs take for a moment is not the step's own time


def _trial_step(config: RunConfig, choices: Choices, model: GPT) -> Callable[[], None]:
    """A step of training on copies, with tokens drawn for it."""
    trial = copy.deepcopy(model)
    optimizer = build_optimizer(trial, config.optim)
    wrapped: Wrapped = wrap(trial, choices)
    own_rows = max(1, choices.rows // choices.world_size)
    shape = (own_rows, trial.config.context_length + 1)
    tokens = torch.randint(trial.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    numbers = {"target_count": tokens[:, 1:].numel(), "seed": 0, "step": 0, "rank": 0}

    def step() -> None:
        gradients(wrapped, tokens[:, :-1], tokens[:, 1:], choices=choices, **numbers).item()
        torch.nn.utils.get_total_norm([x.grad for x in trial.parameters() if x.grad is not None])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _evaluation_seconds(choices: Choices, model: GPT, data: Data) -> float:
    """Time of a whole evaluation, from a part of it."""
    whole = data.held_out.target_count
    part = min(whole, max(1, 4 * choices.batch_size) * data.held_out.context_length)
    started = time.perf_counter()
    evaluate_held_out(
        model,
        replace(data.held_out, max_tokens=part),
        data.bytes_per_token,
        batch_size=choices.batch_size,
        device=choices.device,
        dtype=DTYPES[choices.dtype],
    )
    return (time.perf_counter() - started) * whole / part
