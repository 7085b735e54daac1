"""What others measured of OpenAI's models on OpenWebText, beside which ours is shown."""

PUBLISHED_LOSSES = {
    "gpt2": {"train": 3.11, "val": 3.12},
    "gpt2-medium": {"train": 2.85, "val": 2.84},
    "gpt2-large": {"train": 2.66, "val": 2.67},
    "gpt2-xl": {"train": 2.56, "val": 2.54},
}
"""Nats per token, from nanoGPT's README, "baselines"; its eval_gpt2 draws 500 batches of 8 windows of 1,024 tokens.

Its held-out pages are another draw of 0.05 % of the same collection, and its windows begin anywhere.
"""


def published_loss(model: str, source: str, split: str) -> float | None:
    """The published loss of a model on a split of a source; None where there is none."""
    return PUBLISHED_LOSSES.get(model, {}).get(split) if source == "openwebtext" else None
