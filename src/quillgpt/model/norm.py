"""The menu of normalisations: what keeps the residual stream at one scale before each part of a block.

To add one: write a function from the model's settings to a module (B, T, C) -> (B, T, C); give it a line in `NORMS`.
"""

from collections.abc import Callable, Mapping

from torch import nn

from quillgpt.config import ModelConfig

EPSILON = 1e-5  # GPT-2's, added to the variance; the same for all norms


def layernorm(config: ModelConfig) -> nn.Module:
    """LayerNorm, (x - mean) / sqrt(variance + eps) * weight + bias over channels [Ba 2016]; `bias` is optional."""
    return nn.LayerNorm(config.n_embd, eps=EPSILON, bias=config.bias)


def rmsnorm(config: ModelConfig) -> nn.Module:
    """RMSNorm, x / sqrt(mean of squares + eps) * weight over channels [Zhang 2019]; never a bias."""
    return nn.RMSNorm(config.n_embd, eps=EPSILON)


NORMS: Mapping[str, Callable[[ModelConfig], nn.Module]] = {
    "layernorm": layernorm,
    "rmsnorm": rmsnorm,
}
