"""The training screen: a calm live view in a terminal, plain lines elsewhere, nothing where nobody looks."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from quillgpt.config import ModelConfig
from quillgpt.data.text_to_shards import Progress
from quillgpt.evaluate.score_columns import scores_told
from quillgpt.model.lora import adapter_parameter_count
from quillgpt.model.sizes import parameter_count
from quillgpt.train.curve import curve
from quillgpt.train.resolve import Choices
from quillgpt.train.resume import Position

CURVE_WIDTH, CURVE_HEIGHT = 60, 5
PLAIN_LINES = 20  # about so many lines tell a run where there is no terminal


ShowProgress = Callable[[Progress], None]


@contextlib.contextmanager
def unseen() -> Iterator[ShowProgress]:
    """Show nothing of a preparation."""
    yield lambda progress: None


class Screen(Protocol):
    """What the loop tells whoever looks on."""

    def say(self, text: str) -> None:
        """Show one line that stays."""
        ...

    def preparing(self) -> contextlib.AbstractContextManager[ShowProgress]:
        """Be ready to show how far a preparation of data is, until the block ends."""
        ...

    def training(
        self,
        run: Path,
        model: ModelConfig,
        choices: Choices,
        reasons: Mapping[str, str],
        position: Position,
        lora_rank: int = 0,
    ) -> contextlib.AbstractContextManager[None]:
        """Show what begins, and be ready for its steps until the block ends."""
        ...

    def step(self, line: Mapping[str, Any]) -> None:
        """Show the numbers of a step."""
        ...


class Quiet:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def preparing(self) -> contextlib.AbstractContextManager[ShowProgress]:
        """Do nothing."""
        return unseen()

    @contextlib.contextmanager
    def training(
        self,
        run: Path,
        model: ModelConfig,
        choices: Choices,
        reasons: Mapping[str, str],
        position: Position,
        lora_rank: int = 0,
    ) -> Iterator[None]:
        """Do nothing."""
        yield

    def step(self, line: Mapping[str, Any]) -> None:
        """Do nothing."""


class Terminal:
    """The screen of `quill train`: choices with their reasons, then a live view, or plain lines when piped."""

    def __init__(
        self, console: Console, preparing: Callable[[], contextlib.AbstractContextManager[ShowProgress]] = unseen
    ) -> None:
        self._console = console
        self._preparing = preparing
        self._live: Live | None = None
        self._losses: list[float] = []
        self._held_out: Mapping[str, Any] = {}
        self._best: float = math.inf
        self._band_told = ""  # on the last plain line, so that it is not said on every one
        self._first_step = self._last_step = self._last_token = 0

    def say(self, text: str) -> None:
        """Show one line that stays, above the live view."""
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def preparing(self) -> contextlib.AbstractContextManager[ShowProgress]:
        """Show a preparation as the terminal was told to."""
        return self._preparing()

    @contextlib.contextmanager
    def training(
        self,
        run: Path,
        model: ModelConfig,
        choices: Choices,
        reasons: Mapping[str, str],
        position: Position,
        lora_rank: int = 0,
    ) -> Iterator[None]:
        """Print the choices; hold the live view for the length of the block, and leave its last state standing."""
        self._console.print(choices_table(run, model, choices, reasons, position, lora_rank))
        self._first_step, self._last_step = position.step, position.steps
        self._last_token = position.schedule(model.context_length).position(position.steps)
        if position.best_loss is not None:
            self._best = position.best_loss
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=4) as self._live:
            yield

    def step(self, line: Mapping[str, Any]) -> None:
        """Take in the numbers of a step; redraw the live view, or print a plain line now and then."""
        self._losses.append(line["loss"])
        if "held_out_loss" in line:
            self._held_out = line
            self._best = min(self._best, line["held_out_loss"])
        if self._live is not None:
            self._live.update(self._view(line))
        elif "held_out_loss" in line or line["step"] % max(1, self._last_step // PLAIN_LINES) == 0:
            self._console.print(self._plain(line), soft_wrap=True, highlight=False)

    def _seconds_left(self, line: Mapping[str, Any]) -> float:
        per_token = line["tokens_per_second"]
        return max(0, self._last_token - line["tokens"]) / per_token if per_token else 0.0

    def _plain(self, line: Mapping[str, Any]) -> str:
        text = f"step {line['step']:>7,}/{self._last_step:,}  loss {line['loss']:.4f}  lr {line['lr']:.2e}"
        text += f"  {line['tokens_per_second']:>9,.0f} tokens/s  left {clock(self._seconds_left(line))}"
        if "held_out_loss" in line:
            text += f"  held out {line['held_out_loss']:.4f} ({line['held_out_bits_per_byte']:.3f} bits/byte)"
            text += "".join(f"  {task} {score}" for task, score in scores_told(line))
        band, self._band_told = self._band_told, line.get("band", "")
        return text if self._band_told in ("", band) else f"{text}  {self._band_told}"

    def _view(self, line: Mapping[str, Any]) -> RenderableType:
        recent = self._losses[-20:]
        top = Table.grid(padding=(0, 2))
        top.add_row(
            Text(f"step {line['step']:,} of {self._last_step:,}", style="bold"),
            ProgressBar(total=self._last_step, completed=line["step"], width=30, complete_style="cyan"),
            f"{clock(line['elapsed_seconds'])} gone, {clock(self._seconds_left(line))} left",
        )
        held_out = "not yet"
        if self._held_out:
            bits_per_byte = f"{self._held_out['held_out_bits_per_byte']:.3f} bits/byte"
            held_out = f"{self._held_out['held_out_loss']:.3f}  {bits_per_byte} at step {self._held_out['step']:,}"
        mfu = f"{line['mfu']:.1%}" if line["mfu"] is not None else "n/a"
        figures = Table.grid(padding=(0, 2))
        figures.add_column(style="dim")
        figures.add_column(min_width=34, style="bold")
        figures.add_column(style="dim")
        figures.add_row(
            "loss", f"{sum(recent) / len(recent):.3f}", "speed", f"{line['tokens_per_second']:,.0f} tokens/s"
        )
        figures.add_row("held out", held_out, "memory", f"{line['memory_bytes'] / 1e9:.2f} GB")
        figures.add_row("gradient", f"{line['gradient_norm']:.2f}", "rate", f"{line['lr']:.2e}, MFU {mfu}")
        for task, score in scores_told(self._held_out):
            figures.add_row(task, f"{score}  at step {self._held_out['step']:,}", "", "")
        shape = curve(self._losses, width=CURVE_WIDTH, height=CURVE_HEIGHT)
        band = Text(line.get("band", ""), style="yellow" if "check" in line.get("band", "") else "dim")
        return Group("", top, figures, *([band] if band else []), Text("\n".join(shape), style="cyan", no_wrap=True))


def choices_table(
    run: Path,
    model: ModelConfig,
    choices: Choices,
    reasons: Mapping[str, str],
    position: Position,
    lora_rank: int = 0,
) -> RenderableType:
    """What was decided for this run and why, one line each."""
    table = Table.grid(padding=(0, 2))
    accumulation = -(-choices.rows // (choices.batch_size * choices.world_size))
    rows = [
        ("run", str(run), f"from step {position.step:,}" if position.step else "new"),
        (
            "model",
            f"{parameter_count(model):,} parameters",
            f"{model.n_layer} layers, {model.n_embd} wide, vocab {model.vocab_size:,}",
        ),
        (
            "batch",
            f"{choices.rows * model.context_length:,} tokens",
            f"{choices.rows} x {model.context_length}, {accumulation} micro-batches of {choices.batch_size}"
            f" ({reasons['batch_size']})"
            + (f" on each of {choices.world_size} ranks" if choices.world_size > 1 else ""),
        ),
        ("device", choices.device, reasons["device"]),
        ("dtype", choices.dtype, reasons["dtype"]),
        ("threads", str(choices.threads), reasons["threads"]),
        ("attention", model.attention, reasons["attention"]),
        ("compile", "on" if choices.compile else "off", reasons["compile"]),
    ]
    if position.row_changes:
        begins = ", ".join(f"{step:,}" for step, _ in position.row_changes)
        sizes = " to ".join(f"{rows:,}" for rows in (position.rows, *(rows for _, rows in position.row_changes)))
        rows.insert(3, ("ramp", f"{sizes} rows", f"sequences of a step, from steps 0, {begins} on"))
    if lora_rank:
        trained = f"{adapter_parameter_count(model, lora_rank):,} parameters"
        rows.insert(2, ("trained", trained, f"LoRA of rank {lora_rank}; the model's own are frozen"))
    for name, value, reason in rows:
        table.add_row(Text(name, style="dim"), value, Text(reason, style="dim"))
    return table


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
