"""Causes that show in the result: what was learnt, what was learnt by heart, and how fast."""

import numpy as np

from quillgpt.doctor.finding import LIKELY, POSSIBLE, VERY_LIKELY, Finding
from quillgpt.doctor.observed import Observed

GAP = 0.1  # nats per token
SIGMAS = 3
LONG_ENOUGH = 100  # steps after which a model knows more than frequencies
NOT_A_MOMENT = 60.0  # seconds
HALF = 0.5


def over_fitting(observed: Observed) -> Finding | None:
    """The held-out loss rises again while the training loss is below it."""
    steps, held_out = observed.series("held_out_loss")
    _, errors = observed.series("held_out_standard_error")
    if len(held_out) < 2:
        return None
    lowest, training = int(held_out.argmin()), observed.training_loss_now
    if held_out[-1] - held_out[lowest] < max(GAP / 2, SIGMAS * errors[-1]) or held_out[-1] - training < GAP:
        return None
    evidence = [
        f"held-out loss {held_out[lowest]:.3f} at step {steps[lowest]:,.0f}, now {held_out[-1]:.3f}; "
        f"training loss {training:.3f}"
    ]
    train_tokens = observed.record.environment.get("data", {}).get("train_tokens", 0)
    if train_tokens:
        evidence.append(f"every training token was seen {observed.record.lines[-1]['tokens'] / train_tokens:.1f} times")
    return Finding(
        certainty=VERY_LIKELY,
        evidence=tuple(evidence),
        remedy="the best checkpoint is kept; train shorter, on more text, with --dropout 0.1, or a smaller model",
    )


def no_context(observed: Observed) -> Finding | None:
    """After many steps no better than guessing each token by how common it is."""
    assert observed.probe is not None
    probe, warmup = observed.probe, observed.record.config.optim.warmup_steps
    guessing, slack = probe.frequencies.unigram_loss, SIGMAS * probe.held_out.standard_error
    if probe.step < warmup + LONG_ENOUGH or probe.held_out.loss < guessing - slack:
        return None
    return Finding(
        certainty=LIKELY,
        evidence=(
            f"held-out loss {probe.held_out.loss:.3f} after {probe.step:,} steps; guessing each token by its frequency "
            f"gives {guessing:.3f}",
        ),
        remedy="look whether attention sees earlier positions, targets are the next tokens, and --lr is what you mean",
    )


def slower(observed: Observed) -> Finding | None:
    """A speed that fell and stayed low."""
    steps, rates = observed.series("tokens_per_second")
    quarter = len(rates) // 4
    if quarter < 2 or observed.record.lines[-1].get("elapsed_seconds", 0.0) < NOT_A_MOMENT:
        return None
    before, now = float(np.median(rates[:quarter])), float(np.median(rates[-quarter:]))
    if now > HALF * before:
        return None
    return Finding(
        certainty=POSSIBLE,
        evidence=(
            f"{now:,.0f} tokens/s from step {steps[-quarter]:,.0f} on, {before:,.0f} before step {steps[quarter]:,.0f}",
        ),
        remedy="look for other programs, heat or a full memory; the result is the same, only later",
    )
