"""Learning rate and momentum by step, in closed form.

To add a schedule: a function of the progress after warm-up, 0 to 1, and `decay_fraction`; a line in `SCHEDULES`.
"""

import math
from collections.abc import Callable, Mapping

from quillgpt.config import OptimConfig
from quillgpt.errors import pick

FIRST_MOMENTUM = 0.85


def cosine(progress: float, decay_fraction: float) -> float:
    """Half a cosine from 1 to 0 [Loshchilov 2017, equation 5, one cycle]."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_stable_decay(progress: float, decay_fraction: float) -> float:
    """1, then linear to 0 over the last `decay_fraction` [Hu 2024, 4.2]."""
    return min(1.0, (1.0 - progress) / decay_fraction)


SCHEDULES: Mapping[str, Callable[[float, float], float]] = {
    "cosine": cosine,
    "linear": lambda progress, decay_fraction: 1.0 - progress,
    "wsd": warmup_stable_decay,
    "constant": lambda progress, decay_fraction: 1.0,
}


def learning_rate(step: int, steps: int, settings: OptimConfig, batch_fraction: float = 1.0) -> float:
    """The learning rate of a step, counted from 0, in a run of `steps`; Muon's groups multiply it by their `lr_ratio`.

    Warm-up multiplies lr by (step + 1) / (warmup_steps + 1), so that the first step is not lost. After it the schedule
    decays from lr to min_lr, reached at `decay_steps` (0: at the last step) and kept from there.

    A step with a fraction of the full batch, as a batch ramp has, multiplies it by the square root of the fraction: the
    noise of a gradient falls with the square root of the batch size, and the rate that suits an optimizer that divides
    by the gradient's size, as AdamW does, grows with it [Malladi 2022]; for Muon this is used without a test.
    """
    if step < settings.warmup_steps:
        lr = settings.lr * (step + 1) / (settings.warmup_steps + 1)
    else:
        end = settings.decay_steps or steps
        progress = min(1.0, (step - settings.warmup_steps) / max(1, end - settings.warmup_steps))
        share = pick(SCHEDULES, settings.schedule, "schedule")(progress, settings.decay_fraction)
        lr = settings.min_lr + share * (settings.lr - settings.min_lr)
    return lr * math.sqrt(batch_fraction)


def momentum(step: int, settings: OptimConfig) -> float:
    """Muon's momentum at a step: linear from 0.85 over the warm-up steps, then as set [Jordan 2024]."""
    share = min(1.0, step / settings.momentum_warmup_steps) if settings.momentum_warmup_steps else 1.0
    return settings.momentum + (1.0 - share) * (min(FIRST_MOMENTUM, settings.momentum) - settings.momentum)
