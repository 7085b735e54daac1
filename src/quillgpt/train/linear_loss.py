"""Cross-entropy of a linear layer's outputs, without ever holding the outputs of all tokens.

The loss's derivative by a logit is known as soon as the logit is: softmax minus one-hot. So each chunk of tokens goes
forward and backward at once and its logits are dropped [Hsu 2024]: nothing is computed twice, and memory does not
grow with tokens times vocabulary. torch has such a function from 2.13 on; docs/speed.md tells why this one is kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quillgpt.data.held_out import IGNORED_TARGET
from quillgpt.model.written_out import product_dtype


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, softcap: float, chunk_tokens: int
) -> Tensor:
    """The sum over tokens of -log softmax(logits)[target], in nats and at least in float32.

    hidden: (N, C); weight: (rows, C), of which those from `vocab_size` on are padding; targets: (N,), where -100 does
    not count. The logits are hidden weight^T, bent by softcap * tanh(logits / softcap) where `softcap` is above 0.
    """
    hidden = hidden.to(product_dtype(hidden))
    return _LinearCrossEntropy.apply(hidden, weight, targets, vocab_size, softcap, chunk_tokens)


class _LinearCrossEntropy(torch.autograd.Function):
    """The whole of both passes is in the forward one; the backward one scales what is already there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, softcap: float, chunk_tokens: int
    ) -> Tensor:
        """As `linear_cross_entropy`; keeps the gradients by hidden and weight."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        matrix = weight.to(hidden.dtype)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        for_hidden: list[Tensor] = []
        for_weight: Tensor | None = None
        with torch.autocast(hidden.device.type, enabled=False):
            for part, wanted in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True):
                part_loss, gradient = _loss_and_gradient((part @ matrix.T).to(wide), wanted, vocab_size, softcap)
                loss += part_loss
                gradient = gradient.to(hidden.dtype)
                if ctx.needs_input_grad[0]:
                    for_hidden.append(gradient @ matrix)
                if ctx.needs_input_grad[1]:
                    product = (gradient.T @ part).to(weight.dtype)  # added up as the weight's own gradient will be
                    for_weight = product if for_weight is None else for_weight.add_(product)
        ctx.save_for_backward(torch.cat(for_hidden) if for_hidden else None, for_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore  (torch's decorator hides ctx)
        """By hidden and weight, where they want it."""
        for_hidden, for_weight = (None if saved is None else saved * gradient for saved in ctx.saved_tensors)
        return for_hidden, for_weight, None, None, None, None


def _loss_and_gradient(logits: Tensor, targets: Tensor, vocab_size: int, softcap: float) -> tuple[Tensor, Tensor]:
    """The sum of a chunk's n losses, and its derivative by the logits (n, rows), which are overwritten."""
    counts = (targets != IGNORED_TARGET)[:, None].to(logits.dtype)  # 0 or 1
    scale = 4.0 if softcap else 1.0
    index = targets.clamp(min=0)[:, None]  # (n, 1)
    slope: Tensor | None = None
    if softcap:
        half = logits.mul_(2 / softcap).sigmoid_()  # tanh(x) = 2 sigmoid(2 x) - 1, and sigmoid is six times as fast
        logits = half * (2 * softcap)  # less a constant, which a softmax does not see
        slope = half.addcmul_(half, half, value=-1)  # a quarter of tanh'
    logits[:, vocab_size:] = -torch.inf
    log_probability = logits.log_softmax(dim=-1)
    loss = -(log_probability.gather(1, index) * counts).sum()
    gradient = log_probability.exp_()
    gradient.scatter_(1, index, gradient.gather(1, index) - 1.0)
    if slope is not None:
        gradient *= slope
    return loss, gradient.mul_(scale * counts)
