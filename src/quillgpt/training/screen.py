"""The training screen: a live view in a terminal, plain lines in a pipe or file, nothing by default."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from quillgpt.ascii_plot import plot_values
from quillgpt.config import ModelConfig
from quillgpt.evaluate.results import accuracy_texts
from quillgpt.model.lora import adapter_parameter_count
from quillgpt.model.sizes import parameter_count
from quillgpt.progress import Progress, duration, no_progress
from quillgpt.runtime import Runtime
from quillgpt.training.state import TrainState

logger = logging.getLogger(__name__)

CURVE_WIDTH, CURVE_HEIGHT = 60, 5
PLAIN_LINES = 20  # about how many lines a run prints without a terminal

Line = Mapping[str, Any]
"""the numbers of a step, by their names in metrics.jsonl"""
Reasons = Mapping[str, str]
"""a few words for each field of the runtime that was decided here"""
Preparing = contextlib.AbstractContextManager[Progress]


class Screen:
    """What shows a run; this one shows nothing. Messages are logged, not shown through it."""

    def preparing(self) -> Preparing:
        """Return a context that gives a function to show the progress of preparing data."""
        return contextlib.nullcontext(no_progress)

    def training(
        self, run: Path, model: ModelConfig, runtime: Runtime, reasons: Reasons, state: TrainState, lora_rank: int = 0
    ) -> contextlib.AbstractContextManager[None]:
        """Show the runtime and its reasons; the steps come within the context."""
        return contextlib.nullcontext()

    def judge(self, line: Line) -> Line:
        """Return numbers to add to a metrics line before it is written."""
        return {}

    def step(self, line: Line) -> None:
        """Show the numbers of a step."""


class BandJudge(Protocol):
    """A reference band, which `quill train` passes to the screen: the range of the losses of healthy runs."""

    def start(self, run: Path) -> str:
        """Find the band of a run; return why there is none, or an empty string."""
        ...

    def judge(self, line: Line) -> Line:
        """Return numbers to add to a metrics line."""
        ...

    def text(self) -> str:
        """Where the run is, in words; empty without a band."""
        ...


class Terminal(Screen):
    """The screen of `quill train`: the runtime with its reasons, then a live view, or plain lines when piped."""

    def __init__(
        self, console: Console, preparing: Callable[[], Preparing] | None = None, band: BandJudge | None = None
    ) -> None:
        self._preparing = preparing
        self._console = console
        self._band = band
        self._live: Live | None = None
        self._losses: list[float] = []
        self._validation: Line = {}
        self._last_band = ""  # on the last plain line, so that it is not repeated on every line
        self._last_step = self._last_token = 0

    def preparing(self) -> Preparing:
        """Show the progress of preparing data."""
        return self._preparing() if self._preparing is not None else super().preparing()

    @contextlib.contextmanager
    def training(
        self, run: Path, model: ModelConfig, runtime: Runtime, reasons: Reasons, state: TrainState, lora_rank: int = 0
    ) -> Iterator[None]:
        """Print the runtime and keep the live view until the block ends; its last state stays on the screen."""
        self._console.print(runtime_table(run, model, runtime, reasons, state, lora_rank))
        self._last_step = runtime.steps
        self._last_token = state.schedule(model.context_length).first_token(runtime.steps)
        if self._band is not None and (reason := self._band.start(run)):
            logger.info("reference band: %s", reason)
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=4) as self._live:
            yield

    def judge(self, line: Line) -> Line:
        """Return the place of the line in the reference band."""
        return {} if self._band is None else self._band.judge(line)

    def step(self, line: Line) -> None:
        """Redraw the live view with the numbers of a step, or print a plain line at intervals."""
        self._losses.append(line["train_loss"])
        if "val_loss" in line:
            self._validation = line
        if self._live is not None:
            self._live.update(self._view(line))
        elif "val_loss" in line or line["step"] % max(1, self._last_step // PLAIN_LINES) == 0:
            self._console.print(self._plain(line), soft_wrap=True, highlight=False)

    def _time_left(self, line: Line) -> str:
        speed = line["tokens_per_second"]
        return duration(max(0, self._last_token - line["tokens"]) / speed if speed else 0.0)

    def _plain(self, line: Line) -> str:
        text = f"step {line['step']:>7,}/{self._last_step:,}  loss {line['train_loss']:.4f}  lr {line['lr']:.2e}"
        text += f"  {line['tokens_per_second']:>9,.0f} tokens/s  left {self._time_left(line)}"
        if "val_loss" in line:
            text += f"  validation {line['val_loss']:.4f} ({line['val_bpb']:.3f} bits/byte)"
            text += "".join(f"  {task} {score}" for task, score in accuracy_texts(line))
        last, self._last_band = self._last_band, self._band.text() if self._band is not None else ""
        return text if self._last_band in ("", last) else f"{text}  {self._last_band}"

    def _view(self, line: Line) -> RenderableType:
        top = Table.grid(padding=(0, 2))
        top.add_row(
            Text(f"step {line['step']:,} of {self._last_step:,}", style="bold"),
            ProgressBar(total=self._last_step, completed=line["step"], width=30, complete_style="cyan"),
            f"{duration(line['elapsed_seconds'])} elapsed, {self._time_left(line)} left",
        )
        validation, last = "not yet", self._validation
        if last:
            validation = f"{last['val_loss']:.3f}  {last['val_bpb']:.3f} bits/byte at step {last['step']:,}"
        mfu = f"{line['mfu']:.1%}" if line["mfu"] is not None else "n/a"
        recent = self._losses[-20:]
        numbers = Table.grid(padding=(0, 2))
        numbers.add_column(style="dim")
        numbers.add_column(min_width=34, style="bold")
        numbers.add_column(style="dim")
        loss, speed = sum(recent) / len(recent), line["tokens_per_second"]
        numbers.add_row("loss", f"{loss:.3f}", "speed", f"{speed:,.0f} tokens/s")
        numbers.add_row("validation", validation, "memory", f"{line['memory_bytes'] / 1e9:.2f} GB")
        numbers.add_row("gradient", f"{line['grad_norm']:.2f}", "rate", f"{line['lr']:.2e}, MFU {mfu}")
        for task, score in accuracy_texts(last):
            numbers.add_row(task, f"{score}  at step {last['step']:,}", "", "")
        is_ascii = self._console.options.ascii_only
        losses = "\n".join(plot_values(self._losses, width=CURVE_WIDTH, height=CURVE_HEIGHT, is_ascii=is_ascii))
        place = self._band.text() if self._band is not None else ""
        band = [Text(place, style="yellow" if "check" in place else "dim")] if place else []
        return Group("", top, numbers, *band, Text(losses, style="cyan", no_wrap=True))


def runtime_table(
    run: Path, model: ModelConfig, runtime: Runtime, reasons: Reasons, state: TrainState, lora_rank: int = 0
) -> RenderableType:
    """The runtime of a run and its reasons, one line for each field."""
    ranks, size, micro = runtime.world_size, runtime.global_batch_size, runtime.micro_batch_size
    count = -(-size // (micro * ranks))
    batch = f"{size} x {model.context_length}, {count} micro-batch{'es' if count > 1 else ''} of {micro}"
    batch += f" ({reasons['batch_size']})" + (f" on each of {ranks} ranks" if ranks > 1 else "")
    shape = f"{model.n_layer} layers, {model.n_embd} wide, vocab {model.vocab_size:,}"
    rows = [
        ("run", str(run), f"from step {state.step:,}" if state.step else "new"),
        ("model", f"{parameter_count(model):,} parameters", shape),
        ("batch", f"{size * model.context_length:,} tokens", batch),
        ("device", runtime.device, reasons["device"]),
        ("dtype", runtime.dtype, reasons["dtype"]),
        ("threads", str(runtime.threads), reasons["threads"]),
        ("attention", model.attention, reasons["attention"]),
        ("compile", "on" if runtime.compile else "off", reasons["compile"]),
    ]
    if state.global_batch_size_changes:
        first_steps, sizes = zip((0, state.global_batch_size), *state.global_batch_size_changes, strict=True)
        steps = ", ".join(f"{step:,}" for step in first_steps)
        ramp = " to ".join(f"{size:,}" for size in sizes)
        rows.insert(3, ("ramp", f"{ramp} sequences", f"in a step, from steps {steps}"))
    if lora_rank:
        trained = f"{adapter_parameter_count(model, lora_rank):,} parameters"
        rows.insert(2, ("trained", trained, f"LoRA of rank {lora_rank}; the model's own are frozen"))
    table = Table.grid(padding=(0, 2))
    for name, value, reason in rows:
        table.add_row(Text(name, style="dim"), value, Text(reason, style="dim"))
    return table
