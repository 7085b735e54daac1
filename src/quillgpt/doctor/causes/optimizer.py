"""Causes that lie in the steps: their size, their batch, and what happens to gradients."""

import numpy as np

from quillgpt.doctor.finding import CERTAIN, LIKELY, POSSIBLE, VERY_LIKELY, Finding
from quillgpt.doctor.observed import Observed
from quillgpt.evaluate.bands.making import scatter

FASTER, SLOWER = 1.5, 0.67  # learning rates, in those of the recipe
RISEN = 0.3  # nats per token
SPIKE = 0.5  # nats per token
SPIKE_SCATTERS = 8.0
BESIDE = 10  # lines before a line, which it is compared with
CLIPPED_SHARE = 0.9
FAR_ABOVE_CLIP = 5.0
SMALLER_BATCH = 0.5


def rate_zero(observed: Observed) -> Finding | None:
    """Steps that change nothing."""
    steps, rates = observed.series("lr")
    idle = rates[:-1] == 0.0  # the very last step may have none
    if idle.mean() <= 0.1:
        return None
    first = steps[:-1][idle][0]
    return Finding(
        certainty=CERTAIN,
        evidence=(
            f"the learning rate is 0 at {idle.sum():,} of {len(idle):,} logged steps, first at step {first:,.0f}",
        ),
        remedy="give --lr; for a schedule that ends too early, leave out --decay-steps or raise --min-lr",
    )


def rate_too_high(observed: Observed) -> Finding | None:
    """Above the band with a rate above the recipe's, or a loss that rises again."""
    ratio, judge = observed.learning_rate_ratio, observed.judge
    above = [point for point in judge.outside if point.excess > 0] if judge else []
    evidence = _gradient_evidence(observed)
    if judge and above and ratio >= FASTER:
        worst = max(above, key=lambda point: point.excess)
        return Finding(
            certainty=VERY_LIKELY,
            evidence=(
                f"lr = {observed.record.config.optim.lr:g} is {ratio:.3g} times the rate of the recipe's runs, "
                f"{judge.band.optim['lr']:g}",
                worst.told(),
                *evidence,
            ),
            remedy=f"lower it: --lr {judge.band.optim['lr']:g}",
        )
    rise = _rise(observed)
    if rise is None or (judge and not above):
        return None
    return Finding(
        certainty=LIKELY,
        evidence=(rise, *evidence),
        remedy=f"lower --lr (it is {observed.record.config.optim.lr:g}), or raise --warmup-steps",
    )


def _rise(observed: Observed) -> str | None:
    """How far the training loss has risen from its lowest stretch, where that is far."""
    steps, losses = observed.training_loss
    window = max(2, len(losses) // 10)
    if len(losses) < 4 * window:
        return None
    means = np.convolve(losses, np.ones(window) / window, mode="valid")
    lowest = int(means.argmin())
    if means[-1] - means[lowest] < max(RISEN, 4 * scatter(losses)):
        return None
    return (
        f"the smoothed loss rose from {means[lowest]:.3f} at step {steps[lowest + window - 1]:,.0f} to {means[-1]:.3f}"
    )


def _gradient_evidence(observed: Observed) -> tuple[str, ...]:
    steps, norms = observed.series("gradient_norm")
    clip, band = observed.record.config.optim.gradient_clip, observed.band
    found = []
    if band is not None:
        typical = np.interp(steps * band.tokens_per_step, band.tokens, band.gradient_norm)
        most = np.interp(steps * band.tokens_per_step, band.tokens, band.gradient_norm_high)
        above = (norms > most) & (steps <= band.steps)
        if above.mean() > 0.1:
            worst = int(np.argmax(norms * above))
            told = f"{norms[worst]:.2f} at step {steps[worst]:,.0f}, where the recipe's runs have {typical[worst]:.2f}"
            found.append(f"gradient norm {told}")
    if clip and (norms > clip).mean() > CLIPPED_SHARE:
        found.append(f"clipped to {clip:g} at {(norms > clip).mean():.0%} of the logged steps")
    return tuple(found)


def rate_too_low(observed: Observed) -> Finding | None:
    """Above the band with a rate below the recipe's."""
    judge = observed.judge
    assert judge is not None
    last, ratio = judge.points[-1], observed.learning_rate_ratio
    if last.excess <= 0 or not 0.0 < ratio <= SLOWER:
        return None
    return Finding(
        certainty=VERY_LIKELY,
        evidence=(
            f"lr = {observed.record.config.optim.lr:g}; the recipe's runs had {judge.band.optim['lr']:g}",
            last.told(),
        ),
        remedy=f"raise it: --lr {judge.band.optim['lr']:g}",
    )


def batch_too_small(observed: Observed) -> Finding | None:
    """Fewer tokens in a step than the recipe has, and a loss above its band at equal steps."""
    judge = observed.at_equal_steps
    if judge is None or not judge.points or judge.points[-1].excess <= 0:
        return None
    own, theirs = judge.band.tokens_per_step, int(judge.band.settings["tokens_per_step"])
    if own > SMALLER_BATCH * theirs:
        return None
    last, restless = judge.points[-1], scatter(observed.training_loss[1])
    return Finding(
        certainty=VERY_LIKELY,
        evidence=(
            f"{own:,} tokens in a step; the recipe {judge.band.recipe} has {theirs:,}",
            f"{last.told()} at equal steps",
            f"logged losses lie {restless:.3f} from their trend; the recipe's runs {judge.band.scatter:.3f}",
        ),
        remedy=f"raise it: --batch-tokens {theirs}; or give the run {theirs / own:.3g} times the steps at a lower --lr",
    )


def skipped(observed: Observed) -> Finding | None:
    """Updates that were not applied, because loss or gradients were not finite."""
    lines = observed.record.lines
    steps = [line["step"] for line in lines if line.get("skipped")]
    is_fp16 = observed.record.environment.get("choices", {}).get("dtype") == "fp16"
    if not steps or (is_fp16 and len(steps) < 0.05 * len(lines)):  # fp16 finds its loss scale by such steps
        return None
    return Finding(
        certainty=VERY_LIKELY,
        evidence=(f"{len(steps):,} of {len(lines):,} logged steps were not applied: step {_listed(steps)}",),
        remedy="lower --lr, raise --warmup-steps, or try --dtype fp32",
    )


def spikes(observed: Observed) -> Finding | None:
    """Single steps far above those before them."""
    steps, losses = observed.series("loss")
    if len(losses) <= BESIDE:
        return None
    usual = np.array([np.median(losses[place - BESIDE : place]) for place in range(BESIDE, len(losses))])
    rise = losses[BESIDE:] - usual
    limit = max(SPIKE, SPIKE_SCATTERS * float(np.median(np.abs(rise - np.median(rise)))) / 0.6745)
    found = np.flatnonzero(rise > limit)
    if len(found) < 2 and not (len(found) == 1 and rise[found[0]] > 2 * limit):
        return None
    worst = found[rise[found].argmax()]
    return Finding(
        certainty=LIKELY,
        evidence=(
            f"{len(found):,} of {len(losses):,} logged steps lie more than {limit:.2f} above those before them: "
            f"step {_listed([int(steps[place + BESIDE]) for place in found])}",
            f"the highest, step {steps[worst + BESIDE]:,.0f}, by {rise[worst]:.2f}",
        ),
        remedy="lower --lr or --beta2 0.95, raise --warmup-steps; or look at the text of these steps",
    )


def clipped(observed: Observed) -> Finding | None:
    """Gradients so long that the clip decides the step, and not the rate."""
    clip, band = observed.record.config.optim.gradient_clip, observed.band
    _, norms = observed.series("gradient_norm")
    norms = norms[len(norms) // 4 :]  # in the first quarter every run is restless
    if not clip or not len(norms) or (norms > clip).mean() < CLIPPED_SHARE:
        return None
    middle = float(np.median(norms))
    usual = float(np.median(band.gradient_norm_high)) if band is not None else FAR_ABOVE_CLIP * clip
    if middle < usual:
        return None
    compared = f"; the recipe's runs have {np.median(band.gradient_norm):.2f}" if band is not None else ""
    return Finding(
        certainty=POSSIBLE,
        evidence=(
            f"clipped at {(norms > clip).mean():.0%} of the logged steps: the norm's median is {middle:.2f}, the clip "
            f"{clip:g}{compared}",
        ),
        remedy="lower --lr or raise --warmup-steps; where the loss is good, nothing",
    )


def _listed(steps: list[int]) -> str:
    shown = ", ".join(f"{step:,}" for step in steps[:6])
    return shown + (", ..." if len(steps) > 6 else "")
