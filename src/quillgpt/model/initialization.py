"""The menu of first weights. To add one: a function that gives a matrix its standard deviation; a line in the menu.

Every draw is N(0, std) from torch's default generator, in the order of the model's parameters and without the padding
rows, so that the same seed gives the same weights whatever the padding.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from quillgpt.config import ModelConfig

INIT_STD = 0.02
FIRST_SHARE = "residual.first_share"
PADDED = ("token_embedding.weight", "head.weight", "value_embeddings.tables.")
"""tables with a row for each token, and rows of padding behind them"""
RESIDUAL = ("attention.projection.weight", "mlp.project.weight")
"""what writes into the residual stream"""


def gpt2(name: str, shape: torch.Size, config: ModelConfig) -> float:
    """0.02, and for what writes into the stream less by sqrt(2 n_layer), so that it does not grow with depth.

    [Radford 2019, 2.3]
    """
    return INIT_STD / math.sqrt(2 * config.n_layer) if name.endswith(RESIDUAL) else INIT_STD


def zero_output(name: str, shape: torch.Size, config: ModelConfig) -> float:
    """A block adds nothing at first and the logits are near 0; the other matrices keep the size of what they are given.

    [Jordan 2024b; Karpathy 2025]
    """
    if name.endswith(RESIDUAL) or name.startswith("value_embeddings.gates."):
        return 0.0
    if name == "head.weight":
        return 0.001
    if name in ("token_embedding.weight", "position_embedding.weight"):
        return INIT_STD if config.tied_head else 0.8
    if name.endswith("mlp.expand.weight"):
        return 0.4 / math.sqrt(config.n_embd)
    return 1.0 / math.sqrt(config.n_embd)


INITIALIZATIONS: Mapping[str, Callable[[str, torch.Size, ModelConfig], float]] = {
    "gpt2": gpt2,
    "zero-output": zero_output,
}


@torch.no_grad()
def initialize(
    model: nn.Module, config: ModelConfig, deviation: Callable[[str, torch.Size, ModelConfig], float]
) -> None:
    """Draw every weight anew: matrices by the menu's entry, biases 0, norms and shares of the stream 1, padding 0."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") or name == FIRST_SHARE else 1.0)
            continue
        parameter.zero_()
        rows = parameter[: config.vocab_size] if name.startswith(PADDED) else parameter
        std = deviation(name, parameter.shape, config)
        if std:
            rows.normal_(std=std)
