"""Causes seen in the metrics: learning rate, batch size, gradients, overfitting, speed."""

import numpy as np

from quillgpt.lab.bands.band import scatter
from quillgpt.lab.doctor.observe import CERTAIN, LIKELY, POSSIBLE, VERY_LIKELY, Finding, Observed

FASTER, SLOWER = 1.5, 0.67  # learning rates relative to the recipe's
RISEN = 0.3  # nats per token
SPIKE, SPIKE_SCATTERS = 0.5, 8.0  # nats per token; standard deviations
BEFORE = 10  # lines before a line with which it is compared
CLIPPED_SHARE = 0.9
FAR_ABOVE_CLIP = 5.0
SMALLER_BATCH = 0.5
GAP = 0.1  # nats per token
SHORT_RUN = 60.0  # seconds


def rate_zero(observed: Observed) -> Finding | None:
    """Steps with learning rate 0."""
    steps, rates = observed.series("lr")
    idle = rates[:-1] == 0.0  # the last step may have none
    if idle.mean() <= 0.1:
        return None
    first = steps[:-1][idle][0]
    evidence = f"the learning rate is 0 at {idle.sum():,} of {len(idle):,} logged steps, first at step {first:,.0f}"
    remedy = "give --lr; if the schedule ends too early, leave out --decay-steps or raise --min-lr"
    return Finding(CERTAIN, remedy, (evidence,))


def rate_too_high(observed: Observed) -> Finding | None:
    """Above the band with a rate above the recipe's, or a loss that rises again."""
    lr, ratio, judge = observed.record.config.optim.lr, observed.learning_rate_ratio, observed.judge
    above = [point for point in judge.outside if point.excess > 0] if judge else []
    gradients = _gradient_evidence(observed)
    if judge and above and ratio >= FASTER:
        usual = judge.band.optim["lr"]
        worst = max(above, key=lambda point: point.excess)
        rates = f"lr = {lr:g} is {ratio:.3g} times the rate of the recipe's runs, {usual:g}"
        return Finding(VERY_LIKELY, f"lower it: --lr {usual:g}", (rates, worst.text(), *gradients))
    steps, losses = observed.training_loss
    window = max(2, len(losses) // 10)
    if len(losses) < 4 * window or (judge and not above):
        return None
    means = np.convolve(losses, np.ones(window) / window, mode="valid")
    lowest = int(means.argmin())
    if means[-1] - means[lowest] < max(RISEN, 4 * scatter(losses)):
        return None
    begin = f"{means[lowest]:.3f} at step {steps[lowest + window - 1]:,.0f}"
    rise = f"the smoothed loss rose from {begin} to {means[-1]:.3f}"
    return Finding(LIKELY, f"lower --lr (it is {lr:g}), or raise --warmup-steps", (rise, *gradients))


def _gradient_evidence(observed: Observed) -> list[str]:
    steps, norms = observed.series("grad_norm")
    clip, band = observed.record.config.optim.gradient_clip, observed.band
    found = []
    if band is not None:
        tokens = steps * band.tokens_per_step
        typical = np.interp(tokens, band.tokens, band.grad_norm)
        above = (norms > np.interp(tokens, band.tokens, band.gradient_norm_high)) & (steps <= band.steps)
        if above.mean() > 0.1:
            worst = int(np.argmax(norms * above))
            where = f"{norms[worst]:.2f} at step {steps[worst]:,.0f}"
            found.append(f"gradient norm {where}; the recipe's runs have {typical[worst]:.2f} there")
    if clip and (norms > clip).mean() > CLIPPED_SHARE:
        found.append(f"clipped to {clip:g} at {(norms > clip).mean():.0%} of the logged steps")
    return found


def rate_too_low(observed: Observed) -> Finding | None:
    """Above the band with a rate below the recipe's."""
    judge = observed.judge
    assert judge is not None
    last = judge.points[-1]
    if last.excess <= 0 or not 0.0 < observed.learning_rate_ratio <= SLOWER:
        return None
    usual = judge.band.optim["lr"]
    rates = f"lr = {observed.record.config.optim.lr:g}; the recipe's runs had {usual:g}"
    return Finding(VERY_LIKELY, f"raise it: --lr {usual:g}", (rates, last.text()))


def batch_too_small(observed: Observed) -> Finding | None:
    """Fewer tokens per step than the recipe, and above its band at equal steps."""
    judge = observed.at_equal_steps
    if judge is None or not judge.points or judge.points[-1].excess <= 0:
        return None
    own, usual = judge.band.tokens_per_step, int(judge.band.settings["tokens_per_step"])
    if own > SMALLER_BATCH * usual:
        return None
    own_scatter, usual_scatter = scatter(observed.training_loss[1]), judge.band.scatter
    evidence = (
        f"{own:,} tokens per step; the recipe {judge.band.recipe} has {usual:,}",
        f"{judge.points[-1].text()} at equal steps",
        f"logged losses scatter by {own_scatter:.3f} around their trend; the recipe's runs by {usual_scatter:.3f}",
    )
    remedy = f"raise it: --batch-tokens {usual}; or train {usual / own:.3g} times the steps at a lower --lr"
    return Finding(VERY_LIKELY, remedy, evidence)


def skipped(observed: Observed) -> Finding | None:
    """Updates skipped because loss or gradients were not finite."""
    lines = observed.record.lines
    steps = [line["step"] for line in lines if line.get("skipped")]
    is_fp16 = observed.record.environment.get("runtime", {}).get("dtype") == "fp16"
    if not steps or (is_fp16 and len(steps) < 0.05 * len(lines)):  # fp16 finds its loss scale by such steps
        return None
    evidence = f"{len(steps):,} of {len(lines):,} logged steps were skipped: step {_listed(steps)}"
    return Finding(VERY_LIKELY, "lower --lr, raise --warmup-steps, or try --dtype fp32", (evidence,))


def spikes(observed: Observed) -> Finding | None:
    """Single steps far above those before them."""
    steps, losses = observed.series("train_loss")
    if len(losses) <= BEFORE:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(losses, BEFORE)[:-1]
    steps, rise = steps[BEFORE:], losses[BEFORE:] - np.median(windows, axis=1)
    limit = max(SPIKE, SPIKE_SCATTERS * float(np.median(np.abs(rise - np.median(rise)))) / 0.6745)
    found = np.flatnonzero(rise > limit)
    if len(found) < 2 and not (len(found) == 1 and rise[found[0]] > 2 * limit):
        return None
    listed = _listed([int(step) for step in steps[found]])
    evidence = (
        f"{len(found):,} of {len(losses):,} logged steps are more than {limit:.2f} above those before: step {listed}",
        f"the highest, step {steps[rise.argmax()]:,.0f}, by {rise.max():.2f}",
    )
    return Finding(
        LIKELY, "lower --lr or --beta2 0.95, raise --warmup-steps; or read the text of these steps", evidence
    )


def clipped(observed: Observed) -> Finding | None:
    """Gradient norms so large that clipping determines the step size."""
    clip, band = observed.record.config.optim.gradient_clip, observed.band
    _, norms = observed.series("grad_norm")
    norms = norms[len(norms) // 4 :]  # norms of the first quarter are large in every run
    if not clip or not len(norms) or (norms > clip).mean() < CLIPPED_SHARE:
        return None
    median, share = float(np.median(norms)), (norms > clip).mean()
    if median < (float(np.median(band.gradient_norm_high)) if band is not None else FAR_ABOVE_CLIP * clip):
        return None
    compared = f"; the recipe's runs have {np.median(band.grad_norm):.2f}" if band is not None else ""
    evidence = (
        f"clipped at {share:.0%} of the logged steps: the median norm is {median:.2f}, the clip {clip:g}{compared}"
    )
    return Finding(POSSIBLE, "lower --lr or raise --warmup-steps; if the loss is good, nothing", (evidence,))


def overfitting(observed: Observed) -> Finding | None:
    """The validation loss rises again and is above the training loss."""
    steps, validation = observed.series("val_loss")
    _, errors = observed.series("val_loss_stderr")
    if len(validation) < 2:
        return None
    lowest, training = int(validation.argmin()), observed.last_training_loss
    if validation[-1] - validation[lowest] < max(GAP / 2, 3 * errors[-1]) or validation[-1] - training < GAP:
        return None
    best = f"{validation[lowest]:.3f} at step {steps[lowest]:,.0f}"
    evidence = [f"validation loss {best}, now {validation[-1]:.3f}; training loss {training:.3f}"]
    train_tokens = observed.record.environment.get("data", {}).get("train_tokens", 0)
    if train_tokens:
        epochs = observed.record.lines[-1]["tokens"] / train_tokens
        evidence.append(f"every training token was seen {epochs:.1f} times")
    remedy = "the best checkpoint is kept; train shorter, on more text, with --dropout 0.1, or a smaller model"
    return Finding(VERY_LIKELY, remedy, tuple(evidence))


def slower(observed: Observed) -> Finding | None:
    """The speed fell and stayed low."""
    steps, rates = observed.series("tokens_per_second")
    quarter = len(rates) // 4
    if quarter < 2 or observed.record.lines[-1].get("elapsed_seconds", 0.0) < SHORT_RUN:
        return None
    before, now = float(np.median(rates[:quarter])), float(np.median(rates[-quarter:]))
    if now > before / 2:
        return None
    evidence = (
        f"{now:,.0f} tokens/s from step {steps[-quarter]:,.0f} on, {before:,.0f} before step {steps[quarter]:,.0f}"
    )
    return Finding(POSSIBLE, "look for other programs, heat or full memory; the result is not affected", (evidence,))


def _listed(steps: list[int]) -> str:
    return ", ".join(f"{step:,}" for step in steps[:6]) + (", ..." if len(steps) > 6 else "")
