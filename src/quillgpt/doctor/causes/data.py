"""Causes that lie in what the model was fed: tokens, targets, batches and their order."""

import numpy as np

from quillgpt.doctor.finding import CERTAIN, LIKELY, VERY_LIKELY, Finding
from quillgpt.doctor.observed import Observed
from quillgpt.doctor.probe import Batches
from quillgpt.evaluate.bands.making import scatter

CLEARLY = 0.1  # nats per token
FAR = 0.2  # of frequencies, beyond what two parts of one text differ by
BY_HEART = 0.5  # nats per token
UNRELATED, RELATED = 0.5, 0.8  # correlations
ENOUGH_SCATTER = 0.05  # nats per token, of second differences; less is not to be told from the trend


def wrong_tokenizer(observed: Observed) -> Finding | None:
    """The data lies in other tokens than the model knows, or its two splits do not lie in the same."""
    if observed.has_other_tokenizer:
        return Finding(
            certainty=CERTAIN,
            evidence=("the data's tokenizer has another fingerprint than the checkpoint's",),
            remedy="bring back the data the run was trained on, or train on this data from the beginning",
        )
    if observed.probe is None:
        return None
    found, held_out = observed.probe.frequencies, observed.probe.held_out
    if found.distance < found.distance_within + FAR or held_out.loss < found.unigram_loss:
        return None
    return Finding(
        certainty=LIKELY,
        evidence=(
            f"held-out and training tokens differ in {found.distance:.0%} of their frequencies; two parts of the "
            f"training tokens differ in {found.distance_within:.0%}",
            f"held-out loss {held_out.loss:.3f}; guessing by frequency alone gives {found.unigram_loss:.3f}",
        ),
        remedy="prepare both splits with one tokenizer: `quill prepare`",
    )


def targets_shifted(observed: Observed) -> Finding | None:
    """The model predicts another token than the next one better."""
    assert observed.probe is not None
    losses = observed.probe.held_out.by_offset
    best = min(losses, key=lambda offset: losses[offset])
    batches = observed.probe.batches
    if best == 0 or losses[best] > losses[0] - CLEARLY:
        return None
    if batches is not None and batches.expected.mean() < batches.logged.mean() + CLEARLY:
        return None  # what was logged is the loss on the next tokens: it is only bad at them
    told = ", ".join(f"{offset:+d}: {losses[offset]:.3f}" if offset else f"0: {losses[0]:.3f}" for offset in losses)
    return Finding(
        certainty=CERTAIN,
        evidence=(
            f"it predicts the token at offset {best:+d} from the next one better than the next one",
            f"held-out loss by offset of the target: {told}",
        ),
        remedy="look at what makes inputs and targets: the target of position i is token i + 1",
    )


def repeated_batch(observed: Observed) -> Finding | None:
    """What was logged is far below what the model gives on text it should have seen as often."""
    batches = observed.probe.batches if observed.probe else None
    if batches is not None:
        newest = len(batches.steps) // 3
        logged, expected = batches.logged[-newest:].mean(), batches.expected[-newest:].mean()
        if expected - logged < BY_HEART:
            return None
        first = f"; on its first batch the checkpoint gives {batches.first:.3f}"
        return Finding(
            certainty=VERY_LIKELY,
            evidence=(
                f"the last {newest} logged losses are {logged:.3f} on average; on the batches that seed "
                f"and data say for these steps the checkpoint gives {expected:.3f}" + first,
                *_below(observed),
            ),
            remedy="look at what gives the batches: it must give other rows at every step",
        )
    _, held_out = observed.series("held_out_loss")
    training = observed.training_loss_now
    if not _below(observed) or not len(held_out) or held_out[-1] - training < 2 * BY_HEART:
        return None
    return Finding(
        certainty=LIKELY,
        evidence=(
            f"training loss {training:.3f}, held-out loss {held_out[-1]:.3f}: it knows by heart what it is fed",
            *_below(observed),
        ),
        remedy="look at what gives the batches: it must give other rows at every step",
    )


def _below(observed: Observed) -> tuple[str, ...]:
    judge = observed.judge
    return (judge.told(),) if judge and judge.points and judge.points[-1].excess < 0 else ()


def not_shuffled(observed: Observed) -> Finding | None:
    """The losses of single steps go with the text in the order of its files, and not with the shuffled batches."""
    batches = _batches(observed)
    with_expected = _together(batches.logged, batches.expected)
    with_files = _together(batches.logged, batches.in_order)
    if with_expected > UNRELATED or with_files < RELATED:
        return None
    return Finding(
        certainty=VERY_LIKELY,
        evidence=(
            f"the losses of {len(batches.steps)} logged steps go with those of the text in the order of its files "
            f"(correlation {with_files:.2f}), not with those of the shuffled batches ({with_expected:.2f})",
            *_scatter(observed),
        ),
        remedy="look at what gives the batches: rows must come in the loader's random order",
    )


def other_batches(observed: Observed) -> Finding | None:
    """The losses of single steps do not go with those of the batches that seed and data say."""
    batches = _batches(observed)
    related = _together(batches.logged, batches.expected)
    if related > UNRELATED or np.diff(batches.expected, n=2).std() < ENOUGH_SCATTER:
        return None
    return Finding(
        certainty=LIKELY,
        evidence=(
            f"the losses of {len(batches.steps)} logged steps do not go with those of the batches that seed and data "
            f"say for them (correlation {related:.2f}; a run of these batches has 0.8 and more)",
            *_scatter(observed),
        ),
        remedy="look at what gives the batches: tokens, order, and which tokens are targets",
    )


def _batches(observed: Observed) -> Batches:
    assert observed.probe is not None
    assert observed.probe.batches is not None
    return observed.probe.batches


def _scatter(observed: Observed) -> tuple[str, ...]:
    """How restless the loss is, where a band knows how restless it should be."""
    band = observed.band
    if band is None:
        return ()
    own = scatter(observed.training_loss[1])
    if own < band.scatter_high:
        return ()
    return (f"logged losses lie {own:.3f} from their trend; the recipe's runs {band.scatter:.3f}",)


def _together(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two series beside their trends, as that of their second differences; 0 where one has none.

    Losses of consecutive logged steps differ by their batches and by what was learnt between them. The latter is nearly
    a straight line over three of them, and second differences of a straight line are 0.
    """
    one, other = np.diff(one, n=2), np.diff(other, n=2)
    size = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / size if size > 0 else 0.0
