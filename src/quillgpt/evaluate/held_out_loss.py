"""Held-out loss over fixed windows, in nats per token and in bits per byte.

Nats per token depend on the tokenizer: a larger vocabulary has fewer, harder tokens. Bits per byte divide the same
total by the bytes of text that the targets stand for, so that models with different tokenizers, and file compressors,
can be compared: bits per byte = total nats / ln 2 / bytes.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.data.held_out import IGNORED_TARGET, HeldOutWindows
from quillgpt.distributed import Ranks, total
from quillgpt.model.gpt import GPT

LOGIT_ELEMENTS = 1 << 25  # logits that exist at one time: 128 MiB in fp32


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """The result: loss and its standard error in nats per token, bits per byte, and what they were measured on."""

    loss: float
    standard_error: float
    bits_per_byte: float
    tokens: int
    bytes: int


def evaluate_held_out(
    model: GPT,
    windows: HeldOutWindows,
    bytes_per_token: np.ndarray,
    *,
    batch_size: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    ranks: Ranks | None = None,
    heartbeat: Callable[[], None] = lambda: None,
) -> HeldOutLoss:
    """Score every target of the windows once; the same model and windows give the same digits.

    bytes_per_token: (V,) the bytes each token stands for, 0 for end of text. Draws no random number, and leaves the
    model in the mode it was in. The standard error takes windows as the independent units. With several ranks each
    scores its share and all return the same.
    """
    ranks = ranks or Ranks()
    lengths = torch.from_numpy(bytes_per_token.astype(np.int64))
    sums = torch.zeros(windows.window_count, 2, dtype=torch.float64)  # nats, targets of each window
    byte_count = torch.zeros(1, dtype=torch.float64)
    row = windows.window_count * ranks.rank // ranks.world_size
    with evaluation_mode(model), torch.no_grad(), autocast(device, dtype):
        for inputs, targets in windows.batches(batch_size, ranks.rank, ranks.world_size):
            nats = _target_losses(model, inputs.to(device), targets.to(device)).cpu()  # (B, T) float64
            counted = targets != IGNORED_TARGET
            sums[row : row + len(inputs), 0] = nats.sum(dim=1)
            sums[row : row + len(inputs), 1] = counted.sum(dim=1).double()
            byte_count += lengths[targets[counted]].sum()
            row += len(inputs)
            heartbeat()
    nats, targets_per_window = total(sums.to(device_for_sums(device)), ranks).cpu().unbind(dim=1)
    bytes_seen = int(total(byte_count.to(device_for_sums(device)), ranks).item())
    tokens = int(targets_per_window.sum().item())
    loss = nats.sum().item() / tokens
    return HeldOutLoss(
        loss=loss,
        standard_error=_standard_error(nats - loss * targets_per_window, tokens),
        bits_per_byte=nats.sum().item() / math.log(2) / max(1, bytes_seen),
        tokens=tokens,
        bytes=bytes_seen,
    )


def _target_losses(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each target, (B, T) float64; the logits are made for a bounded number of tokens at a time."""
    hidden = model.hidden(inputs).flatten(0, 1)
    step = max(1, LOGIT_ELEMENTS // model.config.vocab_size)
    losses = [
        F.cross_entropy(model.logits(part).float(), target, ignore_index=IGNORED_TARGET, reduction="none")
        for part, target in zip(hidden.split(step), targets.flatten().split(step), strict=True)
    ]
    return torch.cat(losses).view(targets.shape).to(device_for_sums(inputs.device.type)).double()


def _standard_error(residuals: Tensor, tokens: int) -> float:
    """Standard error of a ratio of sums over windows: sqrt(n / (n - 1) * sum r^2) / tokens [Cochran 1977, 6.3]."""
    count = len(residuals)
    if count < 2:
        return 0.0
    return math.sqrt(count / (count - 1) * residuals.square().sum().item()) / tokens


def device_for_sums(device: str) -> str:
    """Where sums in float64 are kept: MPS has no float64."""
    return "cpu" if device.startswith("mps") else device


def autocast(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Compute matrix products in `dtype`; nothing for fp32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.partition(":")[0], dtype=dtype)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for the length of the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
