"""metrics.jsonl: one line a logged step, and the same numbers for a tracker."""

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from quillgpt.config import ModelConfig, RunConfig, flatten
from quillgpt.errors import NonFiniteError
from quillgpt.evaluate.held_out_loss import HeldOutLoss
from quillgpt.hardware import peak_flops, peak_memory_bytes
from quillgpt.model.sizes import flops_per_token
from quillgpt.run_dir import RunDirectory, append_metrics
from quillgpt.train.resolve import Choices
from quillgpt.train.resume import Position
from quillgpt.train.track import NoTracker, start_tracker

Line = dict[str, Any]


class Metrics:
    """Makes the line of each step, and writes those that are logged; ranks other than the first write nothing."""

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        model: ModelConfig,
        choices: Choices,
        position: Position,
        *,
        is_first: bool,
        say: Callable[[str], None],
    ) -> None:
        self._path = run.metrics
        self._device = torch.device(choices.device)
        self._flops_per_token = flops_per_token(model, config.lora.lora_rank)
        self._peak_flops = peak_flops(self._device, choices.dtype)
        self._world_size = choices.world_size
        self._is_first = is_first
        self._say = say
        self._lost_line = False
        self._position = position
        self._last: Line = {}
        self._last_seconds, self._last_tokens = position.elapsed_seconds, position.tokens
        self._tracker = NoTracker()
        if is_first:
            name = run.path.name if config.train.track_name == "auto" else config.train.track_name
            self._tracker = start_tracker(
                config.train.track,
                project=config.train.track_project,
                name=name,
                settings=flatten(config),
                directory=run.path,
            )

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the tracker; a run that ends without a finite loss leaves a last line that says so."""
        if isinstance(error, NonFiniteError) and self._is_first and self._last:
            append_metrics(self._path, {**self._last, "diverged": True})
        self._tracker.finish()

    def line(
        self, position: Position, *, loss: float, lr: float, norm: float, applied: bool, held_out: HeldOutLoss | None
    ) -> Line:
        """The numbers of the step just done. Loss is nats per token; tokens_per_second is of training alone.

        `mean_loss` is that of all steps since the line before: a tenth of the noise where every 100th step is logged.
        """
        line: Line = {
            "step": position.step,
            "tokens": position.tokens,
            "loss": loss,
            "mean_loss": position.mean_loss,
            "lr": lr,
            "gradient_norm": norm,
            **self._speed(position),
            "memory_bytes": peak_memory_bytes(self._device),
            "elapsed_seconds": position.elapsed_seconds,
        }
        self._last = line
        if position.has_reached_loss:
            line["has_reached_loss"] = True
        if not applied:
            line["skipped"] = True
        if held_out is not None:
            line |= {
                "held_out_loss": held_out.loss,
                "held_out_standard_error": held_out.standard_error,
                "held_out_bits_per_byte": held_out.bits_per_byte,
            }
        return line

    def write(self, line: Line) -> None:
        """Append the line and send it to the tracker. A full disk loses the line, is said once, and stops nothing."""
        self._last_seconds, self._last_tokens = line["elapsed_seconds"], line["tokens"]
        self._position.forget_losses()
        if not self._is_first:
            return
        if not append_metrics(self._path, line) and not self._lost_line:
            self._lost_line = True
            self._say(f"{self._path}: cannot be written (disk full?); training goes on without its lines")
        self._tracker.log(line["step"], tracked(line))

    def _speed(self, position: Position) -> Line:
        """Tokens per second since the last written line, and the share of the card's peak; None where unknown."""
        seconds = position.elapsed_seconds - self._last_seconds
        rate = (position.tokens - self._last_tokens) / seconds if seconds > 0 else 0.0
        peak = self._peak_flops * self._world_size
        return {"tokens_per_second": round(rate, 1), "mfu": rate * self._flops_per_token / peak if peak else None}


def tracked(line: Line) -> dict[str, float]:
    """The finite numbers of a line; what it has for every layer gets a name for each, as "kernel_x_max/layer_3"."""
    flat: Line = {}
    for name, value in line.items():
        several = (
            {f"{name}/layer_{layer}": number for layer, number in enumerate(value)} if isinstance(value, list) else {}
        )
        flat |= several or {name: value}
    return {
        name: float(value)
        for name, value in flat.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
