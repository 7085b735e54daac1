"""Causes in the data that the model was trained on: tokens, targets, batches and their order."""

import numpy as np

from quillgpt.lab.bands.band import scatter
from quillgpt.lab.doctor.observe import CERTAIN, LIKELY, VERY_LIKELY, Finding, Observed
from quillgpt.lab.doctor.probe import Batches

CLEARLY = 0.1  # nats per token
FAR = 0.2  # of frequencies, in excess of the difference of two parts of one text
BY_HEART = 0.5  # nats per token
UNRELATED, RELATED = 0.5, 0.8  # correlations
ENOUGH_SCATTER = 0.05  # nats per token, of second differences; less is not separable from the trend


def wrong_tokenizer(observed: Observed) -> Finding | None:
    """The data's tokenizer is not the model's, or the two splits have different ones."""
    if observed.has_other_tokenizer:
        remedy = "restore the data the run was trained on, or train on this data from the start"
        return Finding(CERTAIN, remedy, ("the data's tokenizer has another fingerprint than the checkpoint's",))
    if observed.probe is None:
        return None
    found, validation = observed.probe.frequencies, observed.probe.validation
    if found.distance < found.distance_within + FAR or validation.loss < found.unigram_loss:
        return None
    evidence = (
        f"validation and training tokens differ in {found.distance:.0%} of their frequencies; two parts of the "
        f"training tokens differ in {found.distance_within:.0%}",
        f"validation loss {validation.loss:.3f}; guessing by frequency gives {found.unigram_loss:.3f}",
    )
    return Finding(LIKELY, "prepare both splits with one tokenizer: `quill prepare`", evidence)


def targets_shifted(observed: Observed) -> Finding | None:
    """The model predicts another token better than the next one."""
    assert observed.probe is not None
    losses, batches = observed.probe.validation.by_offset, observed.probe.batches
    best = min(losses, key=lambda offset: losses[offset])
    if best == 0 or losses[best] > losses[0] - CLEARLY:
        return None
    if batches is not None:
        is_as_logged = batches.expected.mean() < batches.logged.mean() + CLEARLY
    else:
        is_as_logged = not losses[0] > observed.last_training_loss + BY_HEART  # NaN if nothing was logged
    if is_as_logged:  # it was trained on the next tokens and is only bad at them
        return None
    by_offset = ", ".join(f"{offset:+d}: {loss:.3f}" if offset else f"0: {loss:.3f}" for offset, loss in losses.items())
    evidence = (
        f"it predicts the token at offset {best:+d} from the next one better than the next one",
        f"validation loss by offset of the target: {by_offset}",
    )
    remedy = "check the code that makes inputs and targets: the target of position i is token i + 1"
    return Finding(CERTAIN if batches is not None else LIKELY, remedy, evidence)


def repeated_batch(observed: Observed) -> Finding | None:
    """The logged loss is far below the model's loss on text it should have seen as often."""
    batches = observed.probe.batches if observed.probe else None
    judge, remedy = observed.judge, "check the batches: every step must have different sequences"
    below = (judge.text(),) if judge and judge.points and judge.points[-1].excess < 0 else ()
    if batches is not None:
        newest = len(batches.steps) // 3
        logged, expected = batches.logged[-newest:].mean(), batches.expected[-newest:].mean()
        if expected - logged < BY_HEART:
            return None
        losses = (
            f"the last {newest} logged losses are {logged:.3f} on average; on the batches of these steps by seed and "
            f"data the checkpoint gives {expected:.3f}; on its first batch it gives {batches.first:.3f}"
        )
        return Finding(VERY_LIKELY, remedy, (losses, *below))
    _, validation = observed.series("val_loss")
    training = observed.last_training_loss
    if not below or not len(validation) or validation[-1] - training < 2 * BY_HEART:
        return None
    losses = f"training loss {training:.3f}, validation loss {validation[-1]:.3f}: the training batches are memorised"
    return Finding(LIKELY, remedy, (losses, *below))


def not_shuffled(observed: Observed) -> Finding | None:
    """The losses of single steps correlate with the text in file order and not with the shuffled batches."""
    batches = _batches(observed)
    with_expected = _correlation(batches.logged, batches.expected)
    with_files = _correlation(batches.logged, batches.in_order)
    if with_expected > UNRELATED or with_files < RELATED:
        return None
    correlation = (
        f"the losses of {len(batches.steps)} logged steps correlate with those of the text in file order "
        f"({with_files:.2f}), not with those of the shuffled batches ({with_expected:.2f})"
    )
    remedy = "check the batches: sequences must come in the loader's random order"
    return Finding(VERY_LIKELY, remedy, (correlation, *_scatter(observed)))


def other_batches(observed: Observed) -> Finding | None:
    """The losses of single steps do not correlate with those of the batches given by seed and data."""
    batches = _batches(observed)
    related = _correlation(batches.logged, batches.expected)
    if related > UNRELATED or np.diff(batches.expected, n=2).std() < ENOUGH_SCATTER:
        return None
    correlation = (
        f"the losses of {len(batches.steps)} logged steps do not correlate with those of the batches of these steps by "
        f"seed and data ({related:.2f}; a run on these batches has 0.8 and more)"
    )
    remedy = "check the batches: tokens, order, and which tokens are targets"
    return Finding(LIKELY, remedy, (correlation, *_scatter(observed)))


def _batches(observed: Observed) -> Batches:
    assert observed.probe is not None
    assert observed.probe.batches is not None
    return observed.probe.batches


def _scatter(observed: Observed) -> tuple[str, ...]:
    """The scatter of the loss, if it is larger than in the band's runs."""
    own, band = scatter(observed.training_loss[1]), observed.band
    if band is None or own < band.scatter_high:
        return ()
    return (f"logged losses scatter by {own:.3f} around their trend; the recipe's runs by {band.scatter:.3f}",)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two series without their trends, as that of their second differences; 0 if one is constant.

    Losses of consecutive logged steps differ by their batches and by what was learnt between them. The latter is nearly
    a straight line over three of them, and second differences of a straight line are 0.
    """
    one, other = np.diff(one, n=2), np.diff(other, n=2)
    size = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / size if size > 0 else 0.0
