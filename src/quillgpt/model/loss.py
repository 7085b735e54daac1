"""Cross-entropy of a linear layer's outputs that never holds the outputs of all tokens.

The gradient of the loss by a logit, softmax minus one-hot, is known as soon as the logit is. So each chunk of tokens
goes forward and backward at once and its logits are dropped [Hsu 2024]: nothing is computed twice, and memory does not
grow with tokens times vocabulary. torch has such a function from 2.13 on; docs/speed.md says why this one is kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quillgpt.model.precision import product_dtype

LOSS_CHUNK_ELEMENTS = 1 << 25  # logits that exist at one time: 128 MiB in fp32
IGNORED_TARGET = -100  # torch's; marks the padding of the last window


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, softcap: float, chunk_tokens: int
) -> Tensor:
    """The sum over tokens of -log softmax(logits)[target], in nats and at least in float32.

    hidden: (N, C); weight: (rows, C), of which those from `vocab_size` on are padding; targets: (N,), where -100 is
    ignored. The logits are hidden weight^T, soft-capped to softcap * tanh(logits / softcap) if `softcap` is above 0.
    """
    hidden = hidden.to(product_dtype(hidden))
    return _LinearCrossEntropy.apply(hidden, weight, targets, vocab_size, softcap, chunk_tokens)


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass; the backward pass only multiplies them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, softcap: float, chunk_tokens: int
    ) -> Tensor:
        """As `linear_cross_entropy`; saves the gradients of hidden and weight."""
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        matrix = weight.to(hidden.dtype)
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        weight_gradient: Tensor | None = None
        chunk_loss = _ChunkLoss(min(chunk_tokens, len(hidden)), matrix, vocab_size, softcap)
        total = chunk_loss.logits.new_zeros(())
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), chunk_tokens):
                chunk = slice(start, start + chunk_tokens)
                loss, gradient = chunk_loss(hidden[chunk], targets[chunk])
                total += loss
                if hidden_gradient is not None:
                    torch.mm(gradient, matrix, out=hidden_gradient[chunk])
                if needs_weight:
                    product = (gradient.T @ hidden[chunk]).to(weight.dtype)  # summed in the dtype of the gradient
                    weight_gradient = product if weight_gradient is None else weight_gradient.add_(product)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore  (hidden by torch)
        """The gradients of hidden and weight, where needed."""
        gradients = (None if saved is None else saved * gradient for saved in ctx.saved_tensors)
        return *gradients, None, None, None, None


class _ChunkLoss:
    """The loss of a chunk of tokens and its gradient, in buffers that all chunks share: allocating costs a pass."""

    def __init__(self, chunk_tokens: int, matrix: Tensor, vocab_size: int, softcap: float) -> None:
        shape = (chunk_tokens, len(matrix))
        self.matrix, self.vocab_size, self.softcap = matrix, vocab_size, softcap
        self.products = matrix.new_empty(shape)
        self.logits = matrix.new_empty(shape, dtype=torch.promote_types(matrix.dtype, torch.float32))
        self.slopes = torch.empty_like(self.logits) if softcap else None

    def __call__(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """hidden: (n, C), targets: (n,). The sum of n losses, and its gradient (n, rows), valid until the next call."""
        count = len(hidden)
        logits = self.logits[:count].copy_(torch.mm(hidden, self.matrix.T, out=self.products[:count]))
        scale, slope = 1.0, None
        if self.slopes is not None:
            half = logits.mul_(2 / self.softcap).sigmoid_()  # tanh(x) = 2 sigmoid(2 x) - 1, and is six times as slow
            slope, scale = torch.addcmul(half, half, half, value=-1, out=self.slopes[:count]), 4.0  # tanh' = 4 slope
            logits = half.mul_(2 * self.softcap)  # less a constant, which does not change a softmax
        logits[:, self.vocab_size :] = -torch.inf
        is_counted = (targets != IGNORED_TARGET)[:, None].to(logits.dtype)  # 0 or 1
        index = targets.clamp(min=0)[:, None]  # (n, 1)
        largest = logits.amax(dim=-1, keepdim=True)
        target_logits = logits.gather(1, index)
        exponentials = logits.sub_(largest).exp_()
        sums = exponentials.sum(dim=-1, keepdim=True)
        loss = ((sums.log() + largest - target_logits) * is_counted).sum()
        gradient = exponentials.mul_(scale * is_counted / sums)  # softmax; minus one at the target:
        gradient.scatter_(1, index, gradient.gather(1, index) - scale * is_counted)
        if slope is not None:
            gradient *= slope
        return loss, self.products[:count].copy_(gradient)
