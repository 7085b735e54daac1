"""Causes that lie in the evaluation: what was recorded is not what the checkpoint gives."""

import math

from quillgpt.doctor.finding import CERTAIN, LIKELY, VERY_LIKELY, Finding
from quillgpt.doctor.observed import Observed
from quillgpt.doctor.probe import Probe

DIGITS = 0.01  # nats per token that number formats and machines may make
SIGMAS = 5


def dropout_left_on(observed: Observed) -> Finding | None:
    """The recorded loss is the checkpoint's with dropout, and not without."""
    probe = _probe(observed)
    on = probe.held_out.with_dropout
    if (
        on is None
        or not _differs(probe)
        or abs(_recorded(probe) - on) > abs(_recorded(probe) - probe.held_out.loss) / 3
    ):
        return None
    return Finding(
        certainty=VERY_LIKELY,
        evidence=(
            f"step {probe.step:,} recorded a held-out loss of {_recorded(probe):.4f}; scored again, it is "
            f"{probe.held_out.loss:.4f} with dropout off and {on:.4f} with it on",
            f"dropout = {observed.record.config.model.dropout:g}",
        ),
        remedy="evaluate in evaluation mode: model.eval(), or `with evaluation_mode(model)`",
    )


def other_tokens(observed: Observed) -> Finding | None:
    """The recorded loss is worse than guessing, and the checkpoint's is not."""
    probe = _probe(observed)
    guessing = probe.frequencies.unigram_loss
    if not _differs(probe) or _recorded(probe) < guessing or probe.held_out.loss > guessing:
        return None
    return Finding(
        certainty=VERY_LIKELY,
        evidence=(
            f"step {probe.step:,} recorded a held-out loss of {_recorded(probe):.3f}, which is worse than guessing by "
            f"frequency alone ({guessing:.3f})",
            f"scored again on the run's own data, the checkpoint gives {probe.held_out.loss:.3f}",
        ),
        remedy="evaluate on text cut by the tokenizer that the model was trained with",
    )


def other_weights(observed: Observed) -> Finding | None:
    """The recorded loss is not the checkpoint's, and neither dropout nor other tokens explain it."""
    probe = _probe(observed)
    if not _differs(probe) or dropout_left_on(observed) or other_tokens(observed):
        return None
    return Finding(
        certainty=LIKELY,
        evidence=(
            f"step {probe.step:,} recorded a held-out loss of {_recorded(probe):.4f}; scored again, it is "
            f"{probe.held_out.loss:.4f} ({probe.held_out.tokens:,} tokens)",
        ),
        remedy="look at what is evaluated: these weights, this text, targets one later, every target once",
    )


def not_repeatable(observed: Observed) -> Finding | None:
    """Scoring the same windows twice gives other digits."""
    if _probe(observed).held_out.repeats:
        return None
    return Finding(
        certainty=CERTAIN,
        evidence=("the same windows, scored twice by the same weights in evaluation mode, gave other numbers",),
        remedy="look for what is random in the model's forward: dropout that does not heed evaluation mode, noise",
    )


def _differs(probe: Probe) -> bool:
    """Whether the recorded loss cannot be the checkpoint's; where a part was scored, its standard error counts."""
    slack = 0.0 if probe.held_out.is_whole else SIGMAS * probe.held_out.standard_error
    return not math.isclose(_recorded(probe), probe.held_out.loss, rel_tol=0.0, abs_tol=DIGITS + slack)


def _probe(observed: Observed) -> Probe:
    assert observed.probe is not None
    return observed.probe


def _recorded(probe: Probe) -> float:
    assert probe.recorded is not None
    return probe.recorded
