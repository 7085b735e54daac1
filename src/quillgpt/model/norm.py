"""The menu of normalizations, which keep the residual stream at one scale.

To add one: write a function from the model's settings to a module (B, T, C) -> (B, T, C); give it a line in `NORMS`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.model.precision import uses_custom_backward

EPSILON = 1e-5  # GPT-2's, added to the variance; the same for all norms


class RMSNorm(nn.RMSNorm):
    """torch's module, computed by `rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), in the dtype of x."""
        return rms_norm(x, self.weight)


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """x / sqrt(mean of squares + eps) * weight over the last axis, in the dtype of x [Zhang 2019]."""
    weight = None if weight is None else weight.to(x.dtype)
    if uses_custom_backward(x):
        return _RMSNorm.apply(x, weight)
    return F.rms_norm(x, (x.shape[-1],), weight, EPSILON).to(x.dtype)  # autocast may compute it in float32


class _RMSNorm(torch.autograd.Function):
    """With u = x / rms and gradient g, the gradient of x is (g - u mean(g u)) / rms [Zhang 2019, section 4]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        """x: (..., C), weight: (C,) in the dtype of x."""
        fp32 = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=fp32)
        scale = length.square_().div_(x.shape[-1]).add_(EPSILON).rsqrt_().to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit if weight is None else unit * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:  # pyrefly: ignore  (torch's decorator hides ctx)
        """The gradients of x and weight."""
        unit, scale, weight = ctx.saved_tensors
        fp32 = torch.promote_types(unit.dtype, torch.float32)
        product, weight_gradient = gradient * unit, None
        if weight is None:
            total = product.sum(dim=-1, keepdim=True, dtype=fp32)
        else:
            weight_gradient = product.flatten(0, -2).sum(dim=0, dtype=fp32).to(weight.dtype)
            total = (product @ weight)[..., None]
            gradient = gradient * weight
        negative_mean = total.div_(-unit.shape[-1]).to(unit.dtype)
        return torch.addcmul(gradient, unit, negative_mean).mul_(scale), weight_gradient


NORMS: Mapping[str, Callable[[ModelConfig], nn.Module]] = {
    "layernorm": lambda config: nn.LayerNorm(config.n_embd, eps=EPSILON, bias=config.bias),  # [Ba 2016]
    "rmsnorm": lambda config: RMSNorm(config.n_embd, eps=EPSILON),  # never a bias
}
