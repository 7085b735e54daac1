"""Which candidate a model would choose: by its whole log-probability, and by that divided by its length."""

from collections.abc import Sequence

from quillgpt.evaluate.likelihood import Likelihood
from quillgpt.evaluate.tasks.task import Item

PLAIN = ("accuracy",)
NORMALIZED = ("accuracy", "accuracy_norm")


def chosen(item: Item, likelihoods: Sequence[Likelihood]) -> tuple[float, ...]:
    """1 where the likeliest candidate is the right one, else 0."""
    return (_is_right(item, [likelihood.log_probability for likelihood in likelihoods]),)


def chosen_by_token(item: Item, likelihoods: Sequence[Likelihood]) -> tuple[float, ...]:
    """The same, and by log-probability per token: the mean loss decides, as in build-nanogpt and llm.c."""
    per_token = [likelihood.log_probability / likelihood.tokens for likelihood in likelihoods]
    return (*chosen(item, likelihoods), _is_right(item, per_token))


def chosen_by_character(item: Item, likelihoods: Sequence[Likelihood]) -> tuple[float, ...]:
    """The same, and by log-probability per character, as lm-evaluation-harness normalises."""
    per_character = [
        likelihood.log_probability / candidate.characters if candidate.characters else float("-inf")
        for candidate, likelihood in zip(item.candidates, likelihoods, strict=True)
    ]
    return (*chosen(item, likelihoods), _is_right(item, per_character))


def _is_right(item: Item, values: list[float]) -> float:
    return float(values.index(max(values)) == item.right)  # of equals the first, as argmax
