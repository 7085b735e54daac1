"""The numbers of a run that a reader asks for first, each None where the records do not hold it."""

from dataclasses import dataclass

import numpy as np

from quillgpt.report.curves import as_number, finite, smoothing_window
from quillgpt.report.subject import Subject
from quillgpt.report.wording import with_error


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One evaluation: nats per token with its standard error, bits per byte, and when."""

    loss: float
    error: float | None
    bits_per_byte: float | None
    step: int
    tokens: float | None

    @property
    def bits_error(self) -> float | None:
        """The standard error of the bits per byte: the same share of them as of the loss."""
        if self.error is None or self.bits_per_byte is None or self.loss <= 0:
            return None
        return self.error / self.loss * self.bits_per_byte

    @property
    def text(self) -> str:
        """The loss with its error."""
        return with_error(self.loss, self.error)

    @property
    def bits_text(self) -> str:
        """The bits per byte with their error."""
        return "" if self.bits_per_byte is None else with_error(self.bits_per_byte, self.bits_error)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What became of a run. Losses of training are means of `window` logged lines, in nats per token."""

    lines: int
    step: int
    planned_steps: int
    tokens: int
    epochs: float | None
    seconds: float | None
    parameters: int
    window: int
    first_loss: float | None
    last_loss: float | None
    held_out: list[HeldOut]
    tokens_per_second: float | None
    memory_bytes: float | None
    highest_rate: float | None
    last_rate: float | None
    clip: float
    clipped_share: float | None
    median_norm: float | None
    skipped: int
    not_finite: int

    @property
    def first(self) -> HeldOut | None:
        """The first evaluation."""
        return self.held_out[0] if self.held_out else None

    @property
    def last(self) -> HeldOut | None:
        """The last one."""
        return self.held_out[-1] if self.held_out else None

    @property
    def best(self) -> HeldOut | None:
        """The one of least loss."""
        return min(self.held_out, key=lambda entry: entry.loss, default=None)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done, as far as the number of steps is known."""
        return 0 < self.planned_steps <= self.step


def facts_of(subject: Subject) -> Facts:
    """Read the numbers out of the records."""
    record = subject.record
    losses = subject.series("loss", "step")[1]
    _, loss = finite(*subject.series(subject.loss_column, "step"))
    window = smoothing_window(len(loss))
    _, rate = finite(*subject.series("lr", "step"))
    _, norm = finite(*subject.series("gradient_norm", "step"))
    _, speed = finite(*subject.series("tokens_per_second", "step"))
    clip = record.config.optim.gradient_clip
    tokens = int(subject.last("tokens") or 0)
    train_tokens = subject.amount("data", "train_tokens")
    return Facts(
        lines=len(record.lines),
        step=int(subject.last("step") or 0),
        planned_steps=subject.amount("steps") or (0 if record.config.train.minutes else record.config.train.steps),
        tokens=tokens,
        epochs=tokens / train_tokens if train_tokens else None,
        seconds=subject.last("elapsed_seconds"),
        parameters=subject.amount("parameters"),
        window=window,
        first_loss=float(loss[0]) if len(loss) else None,
        last_loss=float(loss[-(window // 2 + 1) :].mean()) if len(loss) else None,
        held_out=held_out_of(subject),
        tokens_per_second=_median(speed[speed > 0]),
        memory_bytes=subject.last("memory_bytes"),
        highest_rate=float(rate.max()) if len(rate) else None,
        last_rate=float(rate[-1]) if len(rate) else None,
        clip=clip,
        clipped_share=float((norm > clip).mean()) if clip and len(norm) else None,
        median_norm=_median(norm),
        skipped=sum(bool(line.get("skipped")) for line in record.lines),
        not_finite=int((~np.isfinite(losses)).sum()),
    )


def held_out_of(subject: Subject) -> list[HeldOut]:
    """The evaluations in the order of the steps; those that are no number are left out."""
    found = []
    for line in subject.record.lines:
        loss, step = as_number(line.get("held_out_loss")), as_number(line.get("step"))
        if loss is None or step is None:
            continue
        found.append(
            HeldOut(
                loss=loss,
                error=as_number(line.get("held_out_standard_error")),
                bits_per_byte=as_number(line.get("held_out_bits_per_byte")),
                step=int(step),
                tokens=as_number(line.get("tokens")),
            )
        )
    return found


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None
