"""How many steps fit into some minutes: a short measurement on a throw-away copy."""

import copy
import statistics
import time
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


def _step_seconds(config: RunConfig, choices: Choices, model: GPT, *, patience: float) -> float:
    trial = copy.deepcopy(model)
    optimizer = build_optimizer(trial, config.optim)
    wrapped: Wrapped = wrap(trial, choices)
    own_rows = max(1, choices.rows // choices.world_size)
    shape = (own_rows, trial.config.context_length + 1)
    tokens = torch.randint(trial.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < FEWEST_STEPS or time.perf_counter() - began < patience * (WARMUP_SECONDS + MEASURE_SECONDS):
        started = time.perf_counter()
        gradients(
            wrapped,
            tokens[:, :-1],
            tokens[:, 1:],
            choices=choices,
            target_count=tokens[:, 1:].numel(),
            seed=0,
            step=0,
            rank=0,
        ).item()
        torch.nn.utils.clip_grad_norm_(trial.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if started - began >= patience * WARMUP_SECONDS or not times:
            times.append(time.perf_counter() - started)
    first_quartile, _, _ = statistics.quantiles(times[1:], n=4, method="inclusive")
    return first_quartile  # what other programs take for a moment is not the step's own time


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
