"""metrics.jsonl: one line per logged step, and the same numbers for a tracker."""

import logging
import math
from types import TracebackType
from typing import Any

import torch

from quillgpt.config import RunConfig, flatten
from quillgpt.distributed import Ranks
from quillgpt.errors import NonFiniteError
from quillgpt.evaluate.loss import ValidationLoss
from quillgpt.model.sizes import flops_per_token
from quillgpt.run_dir import RunDirectory, append_metrics
from quillgpt.runtime import peak_flops, peak_memory_bytes
from quillgpt.training.setup import TrainingComponents
from quillgpt.training.step import StepResult
from quillgpt.training.track import start_tracker

logger = logging.getLogger(__name__)

Line = dict[str, Any]


class Metrics:
    """Makes the metrics line of each step and writes those that are logged; only the main process writes."""

    def __init__(self, run: RunDirectory, config: RunConfig, components: TrainingComponents, ranks: Ranks) -> None:
        runtime = components.runtime
        self._path = run.metrics
        self._device = torch.device(runtime.device)
        self._flops_per_token = flops_per_token(components.model.config, config.lora.lora_rank)
        self._peak_flops = peak_flops(self._device, runtime.dtype) * runtime.world_size
        self._is_main_process = ranks.is_main_process
        self._has_lost_a_line = False
        self._state = components.state
        self._last: Line = {}
        self._last_seconds, self._last_tokens = components.state.elapsed_seconds, components.state.tokens
        self._tracker = start_tracker(
            config.train.track if ranks.is_main_process else "none",
            project=config.train.track_project,
            name=run.path.name if config.train.track_name == "auto" else config.train.track_name,
            settings=flatten(config),
            directory=run.path,
        )

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the tracker; a run that ends with a non-finite loss leaves a last line with `diverged`."""
        if isinstance(error, NonFiniteError) and self._is_main_process and self._last:
            append_metrics(self._path, {**self._last, "diverged": True})
        self._tracker.finish()

    def line(self, step: StepResult, validation: ValidationLoss | None) -> Line:
        """Return the numbers of the last step. Losses are nats per token; tokens_per_second is of training alone.

        `train_loss_mean` is that of all steps since the last written line, which has less noise than one step.
        """
        state = self._state
        line: Line = {
            "step": state.step,
            "tokens": state.tokens,
            "train_loss": step.loss,
            "train_loss_mean": state.train_loss_mean,
            "lr": step.lr,
            "grad_norm": step.grad_norm,
            **self._speed(),
            "memory_bytes": peak_memory_bytes(self._device),
            "elapsed_seconds": state.elapsed_seconds,
        }
        self._last = line
        if state.has_reached_loss:
            line["has_reached_loss"] = True
        if not step.is_applied:
            line["skipped"] = True
        if validation is not None:
            line |= {
                "val_loss": validation.loss,
                "val_loss_stderr": validation.standard_error,
                "val_bpb": validation.bits_per_byte,
            }
        return line

    def write(self, line: Line) -> None:
        """Append the line and send it to the tracker. A full disk loses lines, with one message, and stops nothing."""
        self._last_seconds, self._last_tokens = line["elapsed_seconds"], line["tokens"]
        self._state.reset_losses()
        if not self._is_main_process:
            return
        if not append_metrics(self._path, line) and not self._has_lost_a_line:
            self._has_lost_a_line = True
            logger.warning("%s: not writable (disk full?); training continues without its lines", self._path)
        self._tracker.log(tracked(line), step=line["step"])

    def _speed(self) -> Line:
        """Tokens per second since the last written line, and model FLOPs utilization; None if the peak is unknown."""
        seconds = self._state.elapsed_seconds - self._last_seconds
        rate = (self._state.tokens - self._last_tokens) / seconds if seconds > 0 else 0.0
        mfu = rate * self._flops_per_token / self._peak_flops if self._peak_flops else None
        return {"tokens_per_second": round(rate, 1), "mfu": mfu}


def tracked(line: Line) -> dict[str, float]:
    """Return the finite numbers of a line; a list of one number per layer becomes "kernel_x_max/layer_3" and so on."""
    flat: Line = {}
    for name, value in line.items():
        if isinstance(value, list):
            flat |= {f"{name}/layer_{layer}": number for layer, number in enumerate(value)}
        else:
            flat[name] = value
    return {
        name: float(value)
        for name, value in flat.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
