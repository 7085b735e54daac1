"""What trains: the model with its loss, as one module that torch's wrappers and compiler see whole."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quillgpt.data.held_out import IGNORED_TARGET
from quillgpt.model.gpt import GPT
from quillgpt.model.written_out import product_dtype
from quillgpt.train.linear_loss import linear_cross_entropy

SMALL_ELEMENTS = 1 << 18
"""logits, 1 MB of them: up to here the loss by hand costs more for its many operations than it saves"""


class TrainingStep(nn.Module):
    """tokens, targets -> sum of the losses in nats, number of targets that count.

    Only this module is compiled and wrapped: a call of `model.hidden()` beside a wrapper would skip the reduction of
    gradients without an error. `chunk_elements` bounds the logits that exist at one time. `stream_dtype` is that of the
    residual stream; None: that of the weights.
    """

    def __init__(self, model: GPT, *, chunk_elements: int, stream_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self.stream_dtype = stream_dtype
        self.chunk_tokens = max(1, chunk_elements // model.config.vocab_size)

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """tokens, targets: (B, T) int64, a target of -100 does not count. Returns two scalars."""
        hidden = self.model.hidden(tokens, dtype=self.stream_dtype).flatten(0, 1)  # (B * T, C)
        flat = targets.flatten()
        is_by_torch = torch.compiler.is_compiling() or self._is_small_and_exact(hidden)
        loss_sum = self._by_torch(hidden, flat) if is_by_torch else self._by_hand(hidden, flat)
        return loss_sum, (flat != IGNORED_TARGET).sum()

    def _is_small_and_exact(self, hidden: Tensor) -> bool:
        """Whether torch's own operations are faster: few logits, neither bent nor in 16 bits."""
        config = self.model.config
        is_small = len(hidden) * config.vocab_size <= SMALL_ELEMENTS and len(hidden) <= self.chunk_tokens
        return is_small and not config.logit_softcap and product_dtype(hidden).itemsize > 2

    def _by_hand(self, hidden: Tensor, targets: Tensor) -> Tensor:
        config = self.model.config
        return linear_cross_entropy(
            hidden,
            self.model.head_weight(),
            targets,
            vocab_size=config.vocab_size,
            softcap=config.logit_softcap,
            chunk_tokens=self.chunk_tokens,
        )

    def _by_torch(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The same in torch's operations, which a compiler fuses; the logits of several chunks are computed twice."""
        if targets.shape[0] <= self.chunk_tokens:
            return self._loss_sum(hidden, targets)
        parts = zip(hidden.split(self.chunk_tokens), targets.split(self.chunk_tokens), strict=True)
        return torch.stack([checkpoint(self._loss_sum, *part, use_reentrant=False) for part in parts]).sum()

    def _loss_sum(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.model.logits(hidden)  # (tokens, V)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, ignore_index=IGNORED_TARGET, reduction="sum")


def derived_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """The seed of one forward pass; because it is computed, no random state has to be saved.

    The four numbers are mixed by SplitMix64's finaliser [Steele 2014, figure 17], each after the one before.
    """
    mask = (1 << 64) - 1
    mixed = 0
    for value in (seed, step, micro_batch, rank):
        mixed = (mixed + value + 0x9E3779B97F4A7C15) & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        mixed ^= mixed >> 31
    return mixed >> 1  # torch takes 63 bits on every device
