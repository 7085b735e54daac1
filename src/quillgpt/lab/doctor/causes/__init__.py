"""The menu of causes. To add one: a function `Observed -> Finding | None` in a file here, and a line in `CAUSES`."""

from collections.abc import Callable
from dataclasses import dataclass

from quillgpt.lab.doctor.causes import batches, evaluation, training
from quillgpt.lab.doctor.observe import Finding, Observed


@dataclass(frozen=True)
class Cause:
    """An entry of the menu.

    needs: names of `Observed.missing` without which it cannot be checked. explains: causes that follow from this one;
    they are not reported next to it, if it is at least likely.
    """

    needs: str
    find: Callable[[Observed], Finding | None]
    explains: tuple[str, ...] = ()


# Causes that explain others come first; of equal certainty the first is reported first.
CAUSES: dict[str, Cause] = {
    "wrong tokenizer": Cause("tokenizer", batches.wrong_tokenizer),
    "targets shifted": Cause(
        "checkpoint",
        batches.targets_shifted,
        ("no context learnt", "other batches", "repeated batch", "overfitting", "evaluated with another model"),
    ),
    "repeated batch": Cause("lines", batches.repeated_batch, ("overfitting", "no context learnt", "other batches")),
    "data not shuffled": Cause(
        "batches", batches.not_shuffled, ("other batches", "loss spikes", "learning rate too high")
    ),
    "other batches": Cause("batches", batches.other_batches),
    "dropout left on in evaluation": Cause("recorded", evaluation.dropout_left_on),
    "wrong tokenizer in evaluation": Cause("recorded", evaluation.other_tokens),
    "evaluated with another model": Cause("recorded", evaluation.other_weights),
    "evaluation not repeatable": Cause("checkpoint", evaluation.not_repeatable),
    "learning rate zero": Cause("lines", training.rate_zero, ("no context learnt", "clipped every step")),
    "learning rate too high": Cause(
        "lines", training.rate_too_high, ("clipped every step", "loss spikes", "no context learnt")
    ),
    "learning rate too low": Cause("band", training.rate_too_low, ("no context learnt",)),
    "batch too small": Cause("lines", training.batch_too_small),
    "steps skipped": Cause("lines", training.skipped),
    "loss spikes": Cause("lines", training.spikes),
    "clipped every step": Cause("lines", training.clipped),
    "overfitting": Cause("lines", training.overfitting),
    "no context learnt": Cause("checkpoint", evaluation.no_context),
    "throughput fell": Cause("lines", training.slower),
}
