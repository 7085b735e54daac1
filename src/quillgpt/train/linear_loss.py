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
        matrix, total = weight.to(hidden.dtype), hidden.new_zeros((), dtype=_wide(hidden))
        for_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for_weight: Tensor | None = None
        room = _Room(min(chunk_tokens, len(hidden)), matrix, softcap)  # made once: new memory costs a pass by itself
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), chunk_tokens):
                part = hidden[start : start + chunk_tokens]
                loss, gradient = room.loss_and_gradient(part, targets[start : start + chunk_tokens], vocab_size)
                total += loss
                if for_hidden is not None:
                    torch.mm(gradient, matrix, out=for_hidden[start : start + chunk_tokens])
                if ctx.needs_input_grad[1]:
                    product = (gradient.T @ part).to(weight.dtype)  # added up as the weight's own gradient will be
                    for_weight = product if for_weight is None else for_weight.add_(product)
        ctx.save_for_backward(for_hidden, for_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore  (hidden by torch)
        """By hidden and weight, where they want it."""
        for_hidden, for_weight = (None if saved is None else saved * gradient for saved in ctx.saved_tensors)
        return for_hidden, for_weight, None, None, None, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _Room:
    """Memory for the logits of a chunk, and what is done in it."""

    def __init__(self, chunk_tokens: int, matrix: Tensor, softcap: float) -> None:
        shape = (chunk_tokens, len(matrix))
        self.matrix, self.softcap = matrix, softcap
        self.products = matrix.new_empty(shape)
        self.numbers = matrix.new_empty(shape, dtype=_wide(matrix))
        self.slopes = torch.empty_like(self.numbers) if softcap else None

    def loss_and_gradient(self, hidden: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
        """The sum of the losses of n tokens, and its derivative by their logits (n, rows), until the next call."""
        count = len(hidden)
        logits = self.numbers[:count].copy_(torch.mm(hidden, self.matrix.T, out=self.products[:count]))
        scale, slope = 1.0, None
        if self.slopes is not None:
            half = logits.mul_(2 / self.softcap).sigmoid_()  # tanh(x) = 2 sigmoid(2 x) - 1, and is six times as slow
            slope, scale = torch.addcmul(half, half, half, value=-1, out=self.slopes[:count]), 4.0  # a quarter of tanh'
            logits = half.mul_(2 * self.softcap)  # less a constant, which a softmax does not see
        logits[:, vocab_size:] = -torch.inf
        counts = (targets != IGNORED_TARGET)[:, None].to(logits.dtype)  # 0 or 1
        index = targets.clamp(min=0)[:, None]  # (n, 1)
        largest = logits.amax(dim=-1, keepdim=True)
        of_targets = logits.gather(1, index)
        exponentials = logits.sub_(largest).exp_()
        sums = exponentials.sum(dim=-1, keepdim=True)
        loss = ((sums.log() + largest - of_targets) * counts).sum()
        gradient = exponentials.mul_(scale * counts / sums)  # softmax, and less one where the target is
        gradient.scatter_(1, index, gradient.gather(1, index) - scale * counts)
        if slope is not None:
            gradient *= slope
        return loss, self.products[:count].copy_(gradient)
