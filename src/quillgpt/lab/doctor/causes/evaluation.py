"""Causes seen by evaluating the checkpoint again: the recorded loss is another, or no better than guessing."""

import math

from quillgpt.lab.doctor.observe import CERTAIN, LIKELY, VERY_LIKELY, Finding, Observed
from quillgpt.lab.doctor.probe import Probe

TOLERANCE = 0.01  # nats per token that number formats and machines may differ by
LONG_ENOUGH = 100  # steps after which a model knows more than frequencies


def dropout_left_on(observed: Observed) -> Finding | None:
    """The recorded loss is the checkpoint's with dropout, not without."""
    probe, recorded = _recorded(observed)
    loss, on = probe.validation.loss, probe.validation.with_dropout
    if on is None or not _differs(probe, recorded) or abs(recorded - on) > abs(recorded - loss) / 3:
        return None
    evidence = (
        f"step {probe.step:,} recorded a validation loss of {recorded:.4f}; scored again, it is {loss:.4f} with "
        f"dropout off and {on:.4f} with it on",
        f"dropout = {observed.record.config.model.dropout:g}",
    )
    return Finding(VERY_LIKELY, "evaluate in evaluation mode: model.eval(), or `with evaluation_mode(model)`", evidence)


def other_tokens(observed: Observed) -> Finding | None:
    """The recorded loss is worse than guessing by frequency, and the checkpoint's is not."""
    probe, recorded = _recorded(observed)
    guessing = probe.frequencies.unigram_loss
    if not _differs(probe, recorded) or recorded < guessing or probe.validation.loss > guessing:
        return None
    evidence = (
        f"step {probe.step:,} recorded a validation loss of {recorded:.3f}, worse than guessing by frequency "
        f"({guessing:.3f})",
        f"scored again on the run's own data, the checkpoint gives {probe.validation.loss:.3f}",
    )
    return Finding(VERY_LIKELY, "evaluate on text encoded with the model's own tokenizer", evidence)


def other_weights(observed: Observed) -> Finding | None:
    """The recorded loss is not the checkpoint's, and neither dropout nor other tokens explain it."""
    probe, recorded = _recorded(observed)
    if not _differs(probe, recorded) or dropout_left_on(observed) or other_tokens(observed):
        return None
    evidence = (
        f"step {probe.step:,} recorded a validation loss of {recorded:.4f}; scored again, it is "
        f"{probe.validation.loss:.4f} ({probe.validation.tokens:,} tokens)"
    )
    remedy = "check what is evaluated: these weights, this text, targets one later, every target once"
    return Finding(LIKELY, remedy, (evidence,))


def not_repeatable(observed: Observed) -> Finding | None:
    """Scoring the same windows twice gives different losses."""
    assert observed.probe is not None
    if observed.probe.validation.repeats:
        return None
    evidence = "the same windows, scored twice by the same weights in evaluation mode, gave different numbers"
    remedy = "look for randomness in the model's forward: dropout that ignores evaluation mode, noise"
    return Finding(CERTAIN, remedy, (evidence,))


def no_context(observed: Observed) -> Finding | None:
    """After many steps no better than guessing each token by its frequency."""
    assert observed.probe is not None
    probe, warmup = observed.probe, observed.record.config.optim.warmup_steps
    guessing, error = probe.frequencies.unigram_loss, probe.validation.standard_error
    if probe.step < warmup + LONG_ENOUGH or probe.validation.loss < guessing - 3 * error:
        return None
    evidence = (
        f"validation loss {probe.validation.loss:.3f} after {probe.step:,} steps; guessing each token by its frequency "
        f"gives {guessing:.3f}"
    )
    remedy = "check that attention sees earlier positions, that targets are the next tokens, and --lr"
    return Finding(LIKELY, remedy, (evidence,))


def _recorded(observed: Observed) -> tuple[Probe, float]:
    probe = observed.probe
    assert probe is not None
    assert probe.recorded is not None
    return probe, probe.recorded


def _differs(probe: Probe, recorded: float) -> bool:
    """Whether the recorded loss is not the checkpoint's, allowing 5 standard errors if only a part was scored."""
    slack = 0.0 if probe.validation.is_full else 5 * probe.validation.standard_error
    return not math.isclose(recorded, probe.validation.loss, rel_tol=0.0, abs_tol=TOLERANCE + slack)
