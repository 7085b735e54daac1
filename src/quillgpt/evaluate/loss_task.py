"""The task `loss`: a text scored in full, over fixed windows, so that every call gives the same digits."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from quillgpt.data.held_out import HeldOutWindows
from quillgpt.distributed import Ranks
from quillgpt.evaluate.held_out_loss import HeldOutLoss, evaluate_held_out
from quillgpt.evaluate.held_out_text import HeldOutText
from quillgpt.evaluate.published_losses import published_loss
from quillgpt.evaluate.results import Computed, DataRecord, Evaluation, ModelRecord, TaskRecord, code_fingerprint
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import Tokenizer, bytes_per_token

LOSS = "loss"
MEANING = "held-out text in full: nats per token, bits per byte, perplexity"


@dataclass(frozen=True, kw_only=True)
class LossResult:
    """The loss of a model on a text, what was scored, and how long it took."""

    held_out: HeldOutLoss
    text: HeldOutText
    task_fingerprint: str
    seconds: float

    @property
    def scores(self) -> dict[str, float]:
        """Loss in nats per token, bits per byte, and perplexity: e to the loss."""
        result = self.held_out
        return {"loss": result.loss, "bits_per_byte": result.bits_per_byte, "perplexity": _exp(result.loss)}

    @property
    def standard_errors(self) -> dict[str, float]:
        """Those of the scores; that of the perplexity by its slope at the loss."""
        result = self.held_out
        per_byte = result.tokens / math.log(2) / max(1, result.bytes)
        return {
            "loss": result.standard_error,
            "bits_per_byte": result.standard_error * per_byte,
            "perplexity": result.standard_error * _exp(result.loss),
        }

    def evaluation(self, model: ModelRecord, computed: Computed, *, limit: int) -> Evaluation:
        """The record of it; `limit` is how many tokens were asked for where there are more, else 0."""
        text = self.text
        published = published_loss(model.name, text.source, text.split)
        return Evaluation(
            model=model,
            task=TaskRecord(name=LOSS, fingerprint=self.task_fingerprint, limit=limit, split=text.split or None),
            data=DataRecord(name=text.name, fingerprint=text.fingerprint),
            code=code_fingerprint(),
            computed=computed,
            scores=self.scores,
            standard_errors=self.standard_errors,
            items=self.held_out.tokens,
            seconds=self.seconds,
            bytes=self.held_out.bytes,
            published={} if published is None else {"loss": published},
        )


def score_loss(
    model: GPT,
    tokenizer: Tokenizer,
    text: HeldOutText,
    *,
    max_tokens: int = 0,
    batch_size: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    ranks: Ranks | None = None,
    heartbeat: Callable[[int, int], None] = lambda done, total: None,
) -> LossResult:
    """Score the text, no further than `max_tokens` (0: all); `heartbeat` gets the windows done and their number."""
    windows = text.windows(model.config.context_length, max_tokens)
    done, started = 0, time.perf_counter()

    def beat() -> None:
        nonlocal done
        done = min(done + batch_size * (ranks or Ranks()).world_size, windows.window_count)
        heartbeat(done, windows.window_count)

    held_out = evaluate_held_out(
        model,
        windows,
        bytes_per_token(tokenizer),
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        ranks=ranks,
        heartbeat=beat,
    )
    return LossResult(
        held_out=held_out,
        text=text,
        task_fingerprint=_fingerprint(windows),
        seconds=time.perf_counter() - started,
    )


def _fingerprint(windows: HeldOutWindows) -> str:
    """SHA-256 (hex) of how a text is scored."""
    rule = f"loss 1: windows of {windows.context_length} one after the other, after {len(windows.before)} tokens"
    return hashlib.sha256(rule.encode()).hexdigest()


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
