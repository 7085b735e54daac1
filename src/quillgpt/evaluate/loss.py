"""Validation loss over fixed windows, in nats per token and bits per byte, and the task `loss` of `quill eval`.

Nats per token depend on the tokenizer: a larger vocabulary has fewer, harder tokens. Bits per byte divide the same
total by the bytes of text that the targets cover, so that models with different tokenizers, and file compressors, can
be compared: bits per byte = total nats / ln 2 / bytes.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt.data.loader import ValidationWindows
from quillgpt.distributed import Ranks, all_reduce_sum, device_for_sums
from quillgpt.evaluate.results import LARGEST_EXPONENT, DataRecord, Result, TaskRecord
from quillgpt.evaluate.text import EvaluationText
from quillgpt.model.gpt import GPT
from quillgpt.model.loss import IGNORED_TARGET
from quillgpt.model.precision import autocast, evaluation_mode
from quillgpt.tokenizer import Tokenizer, bytes_per_token

LOGIT_ELEMENTS = 1 << 25  # logits that exist at one time: 128 MiB in fp32

LOSS = "loss"

PUBLISHED_LOSSES = {
    "gpt2": {"train": 3.11, "val": 3.12},
    "gpt2-medium": {"train": 2.85, "val": 2.84},
    "gpt2-large": {"train": 2.66, "val": 2.67},
    "gpt2-xl": {"train": 2.56, "val": 2.54},
}
"""nats per token on OpenWebText, from nanoGPT's README, "baselines"

Its eval_gpt2 samples 500 batches of 8 windows of 1,024 tokens that start anywhere; its validation pages are another
random 0.05 % of the same collection.
"""
PUBLISHED_SOURCE = "openwebtext"


@dataclass(frozen=True, kw_only=True)
class ValidationLoss:
    """Loss and its standard error in nats per token, bits per byte, and how many tokens and bytes were scored."""

    loss: float
    standard_error: float
    bits_per_byte: float
    tokens: int
    bytes: int


def evaluate_loss(
    model: GPT,
    windows: ValidationWindows,
    bytes_per_token: np.ndarray,
    *,
    batch_size: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    ranks: Ranks | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ValidationLoss:
    """Score every target of the windows once; the same model and windows give the same digits.

    bytes_per_token: (V,), 0 for end of text. progress: gets the number of windows done, and of all. With several ranks
    each scores its share and all return the same. The standard error takes windows as the independent units. No random
    number is drawn, and the model keeps its mode.
    """
    ranks = ranks or Ranks()
    lengths = torch.from_numpy(bytes_per_token.astype(np.int64))
    sums = torch.zeros(windows.window_count, 2, dtype=torch.float64)  # nats and targets of each window
    byte_count = torch.zeros(1, dtype=torch.float64)
    first = row = windows.window_count * ranks.rank // ranks.world_size
    with evaluation_mode(model), torch.no_grad(), autocast(device, dtype):
        for inputs, targets in windows.batches(batch_size, ranks.rank, ranks.world_size):
            nats = _target_losses(model, inputs.to(device), targets.to(device)).cpu()  # (B, T) float64
            counted = targets != IGNORED_TARGET
            sums[row : row + len(inputs), 0] = nats.sum(dim=1)
            sums[row : row + len(inputs), 1] = counted.sum(dim=1).double()
            byte_count += lengths[targets[counted]].sum()
            row += len(inputs)
            progress(min((row - first) * ranks.world_size, windows.window_count), windows.window_count)
    nats, targets_per_window = all_reduce_sum(sums.to(device_for_sums(device)), ranks).cpu().unbind(dim=1)
    bytes_seen = int(all_reduce_sum(byte_count.to(device_for_sums(device)), ranks).item())
    tokens = int(targets_per_window.sum().item())
    loss = nats.sum().item() / tokens
    return ValidationLoss(
        loss=loss,
        standard_error=_standard_error(nats - loss * targets_per_window, tokens),
        bits_per_byte=nats.sum().item() / math.log(2) / max(1, bytes_seen),
        tokens=tokens,
        bytes=bytes_seen,
    )


def _target_losses(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each target, (B, T) float64; logits are computed for a bounded number of tokens at a time."""
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


def score_loss(
    model: GPT,
    tokenizer: Tokenizer,
    text: EvaluationText,
    *,
    max_tokens: int = 0,
    limit: int = 0,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Return loss in nats per token, bits per byte, and perplexity, e to the loss, with its error by the delta method.

    max_tokens: how many targets of the text to score; 0: all. limit: the number in the record, 0 if no text was left
    out on request. The other arguments are those of `evaluate_loss`.
    """
    started = time.perf_counter()
    windows = text.windows(model.config.context_length, max_tokens)
    found = evaluate_loss(
        model,
        windows,
        bytes_per_token(tokenizer),
        batch_size=batch_size,
        device=str(next(model.parameters()).device),
        dtype=dtype,
        ranks=ranks,
        progress=progress,
    )
    rule = f"loss 1: windows of {windows.context_length} one after the other, after {len(windows.before)} tokens"
    error, perplexity = found.standard_error, math.exp(found.loss) if found.loss < LARGEST_EXPONENT else math.inf
    bits_error = error * found.tokens / math.log(2) / max(1, found.bytes)
    published = PUBLISHED_LOSSES if text.source == PUBLISHED_SOURCE else {}
    return Result(
        task=TaskRecord(
            name=LOSS,
            fingerprint=hashlib.sha256(rule.encode()).hexdigest(),
            limit=limit,
            split=text.split or None,
        ),
        data=DataRecord(name=text.name, fingerprint=text.fingerprint),
        scores={"loss": found.loss, "bits_per_byte": found.bits_per_byte, "perplexity": perplexity},
        standard_errors={"loss": error, "bits_per_byte": bits_error, "perplexity": error * perplexity},
        items=found.tokens,
        seconds=time.perf_counter() - started,
        bytes=found.bytes,
        published={name: {"loss": losses[text.split]} for name, losses in published.items() if text.split in losses},
    )
