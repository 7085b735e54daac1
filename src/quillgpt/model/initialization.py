"""The menu of initial weights. To add one: a function that returns the standard deviation of a matrix; a line below.

Weights are drawn from N(0, std) by torch's default generator, in the order of the model's parameters and without the
padding rows, so that the same seed gives the same weights whatever the padding.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from quillgpt.config import ModelConfig

INIT_STD = 0.02
PADDED = ("token_embedding.weight", "head.weight", "value_embeddings.tables.")
"""tables with a row for each token, followed by rows of padding"""
RESIDUAL = ("attention.projection.weight", "mlp.project.weight")
"""matrices whose output is added to the residual stream"""
ZERO_VECTORS = ("bias", "residual.first_share")
"""vectors that are initialized as 0; all others, the gains of norms, as 1"""

StandardDeviation = Callable[[str, ModelConfig], float]
"""the name of a matrix and the settings of its model -> the standard deviation of its initial values"""


def gpt2(name: str, config: ModelConfig) -> float:
    """0.02, divided by sqrt(2 n_layer) for what is added to the residual stream [Radford 2019, 2.3]."""
    return INIT_STD / math.sqrt(2 * config.n_layer) if name.endswith(RESIDUAL) else INIT_STD


def zero_output(name: str, config: ModelConfig) -> float:
    """Blocks add 0, logits are near 0, other matrices keep the size of their input [Jordan 2024b; Karpathy 2025]."""
    if name.endswith(RESIDUAL) or name.startswith("value_embeddings.gates."):
        return 0.0
    if name == "head.weight":
        return 0.001
    if name in ("token_embedding.weight", "position_embedding.weight"):
        return INIT_STD if config.tied_head else 0.8
    return (0.4 if name.endswith("mlp.expand.weight") else 1.0) / math.sqrt(config.n_embd)


INITIALIZATIONS: Mapping[str, StandardDeviation] = {"gpt2": gpt2, "zero-output": zero_output}


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, standard_deviation: StandardDeviation) -> None:
    """Draw all matrices; biases and padding become 0, gains of norms 1."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith(ZERO_VECTORS) else 1.0)
            continue
        parameter.zero_()
        rows = parameter[: config.vocab_size] if name.startswith(PADDED) else parameter
        if std := standard_deviation(name, config):
            rows.normal_(std=std)
