"""The menu of normalisations: what keeps the residual stream at one scale before each part of a block.

To add one: write a function from the model's settings to a module (B, T, C) -> (B, T, C); give it a line in `NORMS`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.model.by_hand import pays_by_hand

EPSILON = 1e-5  # GPT-2's, added to the variance; the same for all norms


class RMSNorm(nn.RMSNorm):
    """torch's module with our function in it."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), in the dtype of x."""
        return rms_norm(x, self.weight)


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """x / sqrt(mean of squares + eps) * weight over the last axis, in the dtype of x [Zhang 2019]."""
    weight = None if weight is None else weight.to(x.dtype)
    if pays_by_hand(x):
        return _RMSNorm.apply(x, weight)
    return F.rms_norm(x, (x.shape[-1],), weight, EPSILON).to(x.dtype)  # autocast may compute it in float32


class _RMSNorm(torch.autograd.Function):
    """Of u = x / rms with gradient g: the gradient of x is (g - u mean(g u)) / rms [Zhang 2019, section 4]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        """x: (..., C), weight: (C,) in the dtype of x."""
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = length.square_().div_(x.shape[-1]).add_(EPSILON).rsqrt_().to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit if weight is None else unit * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:  # pyrefly: ignore  (torch's decorator hides ctx)
        """By x and by weight."""
        unit, scale, weight = ctx.saved_tensors
        wide = torch.promote_types(unit.dtype, torch.float32)
        product, for_weight = gradient * unit, None
        if weight is None:
            mean = product.sum(dim=-1, keepdim=True, dtype=wide)
        else:
            for_weight = product.flatten(0, -2).sum(dim=0, dtype=wide).to(weight.dtype)
            mean = (product @ weight)[..., None]
            gradient = gradient * weight
        mean = mean.div_(-unit.shape[-1]).to(unit.dtype)
        return torch.addcmul(gradient, unit, mean).mul_(scale), for_weight


def layernorm(config: ModelConfig) -> nn.Module:
    """LayerNorm, (x - mean) / sqrt(variance + eps) * weight + bias over channels [Ba 2016]; `bias` is optional."""
    return nn.LayerNorm(config.n_embd, eps=EPSILON, bias=config.bias)


def rmsnorm(config: ModelConfig) -> nn.Module:
    """RMSNorm over channels [Zhang 2019]; never a bias."""
    return RMSNorm(config.n_embd, eps=EPSILON)


NORMS: Mapping[str, Callable[[ModelConfig], nn.Module]] = {
    "layernorm": layernorm,
    "rmsnorm": rmsnorm,
}
