"""Learning rate by step, in closed form. To add a schedule: a function of the progress, and a line in `SCHEDULES`."""

import math
from collections.abc import Callable

from quillgpt.config import OptimConfig
from quillgpt.errors import pick


def cosine(progress: float, decay_fraction: float) -> float:
    """Half a cosine from 1 to 0 [Loshchilov 2017, equation 5, one cycle]."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float, decay_fraction: float) -> float:
    """A straight line from 1 to 0."""
    return 1.0 - progress


def warmup_stable_decay(progress: float, decay_fraction: float) -> float:
    """1, then a straight line to 0 over the last `decay_fraction` [Hu 2024, 4.2]."""
    return min(1.0, (1.0 - progress) / decay_fraction)


def constant(progress: float, decay_fraction: float) -> float:
    """1 throughout."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "cosine": cosine,
    "linear": linear,
    "wsd": warmup_stable_decay,
    "constant": constant,
}


FIRST_MOMENTUM = 0.85


def momentum(step: int, settings: OptimConfig) -> float:
    """Muon's momentum at a step: a straight line from 0.85 over the warm-up steps, then as set [Jordan 2024]."""
    share = min(1.0, step / settings.momentum_warmup_steps) if settings.momentum_warmup_steps else 1.0
    return settings.momentum + (1.0 - share) * (min(FIRST_MOMENTUM, settings.momentum) - settings.momentum)


def learning_rate(step: int, steps: int, settings: OptimConfig) -> float:
    """The rate of the step that is the step-th from 0, of `steps`.

    Warm-up gives step i the share (i + 1) / (warmup_steps + 1), so that the first step is not lost. After it the
    schedule goes from lr to min_lr, reached at `decay_steps` (0: at the last step) and kept from there.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / (settings.warmup_steps + 1)
    end = settings.decay_steps or steps
    progress = min(1.0, (step - settings.warmup_steps) / max(1, end - settings.warmup_steps))
    share = pick(SCHEDULES, settings.schedule, "schedule")(progress, settings.decay_fraction)
    return settings.min_lr + share * (settings.lr - settings.min_lr)
