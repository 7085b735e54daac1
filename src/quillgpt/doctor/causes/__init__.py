"""The menu of causes. To add one: a function `Observed -> Finding | None` in a file here, and a line in `CAUSES`.

In order: what explains others comes first. Of equal certainty the first is told first.
"""

from quillgpt.doctor.causes import data, evaluation, optimizer, outcome
from quillgpt.doctor.finding import Cause

CAUSES: dict[str, Cause] = {
    "wrong tokenizer": Cause(needs=("tokenizer",), look=data.wrong_tokenizer),
    "targets shifted": Cause(
        needs=("checkpoint",),
        look=data.targets_shifted,
        explains=(
            "learnt no context",
            "other batches",
            "repeated batch",
            "over-fitting",
            "evaluated with another model",
        ),
    ),
    "repeated batch": Cause(
        needs=("lines",), look=data.repeated_batch, explains=("over-fitting", "learnt no context", "other batches")
    ),
    "data not shuffled": Cause(
        needs=("batches",), look=data.not_shuffled, explains=("other batches", "loss spikes", "learning rate too high")
    ),
    "other batches": Cause(needs=("batches",), look=data.other_batches),
    "dropout left on in evaluation": Cause(needs=("recorded",), look=evaluation.dropout_left_on),
    "evaluated in another tokenizer": Cause(needs=("recorded",), look=evaluation.other_tokens),
    "evaluated with another model": Cause(needs=("recorded",), look=evaluation.other_weights),
    "evaluation not repeatable": Cause(needs=("checkpoint",), look=evaluation.not_repeatable),
    "learning rate zero": Cause(
        needs=("lines",), look=optimizer.rate_zero, explains=("learnt no context", "clipped every step")
    ),
    "learning rate too high": Cause(
        needs=("lines",),
        look=optimizer.rate_too_high,
        explains=("clipped every step", "loss spikes", "learnt no context"),
    ),
    "learning rate too low": Cause(needs=("band",), look=optimizer.rate_too_low, explains=("learnt no context",)),
    "batch too small": Cause(needs=("lines",), look=optimizer.batch_too_small),
    "steps skipped": Cause(needs=("lines",), look=optimizer.skipped),
    "loss spikes": Cause(needs=("lines",), look=optimizer.spikes),
    "clipped every step": Cause(needs=("lines",), look=optimizer.clipped),
    "over-fitting": Cause(needs=("lines",), look=outcome.over_fitting),
    "learnt no context": Cause(needs=("checkpoint",), look=outcome.no_context),
    "throughput fell": Cause(needs=("lines",), look=outcome.slower),
}
