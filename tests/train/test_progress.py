"""The training screen: plain lines in a pipe, a live view in a terminal, every figure in both."""

import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from quillgpt.config import ModelConfig
from quillgpt.train.curve import LEVELS, curve
from quillgpt.train.progress import Quiet, Terminal, clock
from quillgpt.train.resolve import Choices
from quillgpt.train.resume import Position

MODEL = ModelConfig(n_layer=1, n_head=1, n_embd=16, context_length=8, vocab_size=100)
CHOICES = Choices(
    device="cpu",
    dtype="bf16",
    threads=2,
    compile=False,
    compile_backend="inductor",
    matmul_precision="high",
    dist_backend="gloo",
    rows=8,
    batch_size=4,
    world_size=1,
)
REASONS = dict.fromkeys(["device", "dtype", "threads", "attention", "compile", "batch_size"], "because")


def line(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": 64 * step,
        "loss": 5.0 - step / 100,
        "lr": 1e-3,
        "gradient_norm": 0.5,
        "tokens_per_second": 640.0,
        "mfu": None,
        "memory_bytes": 10**9,
        "elapsed_seconds": step / 10,
        **more,
    }


def shown(*, is_terminal: bool, steps: int = 100) -> str:
    output = io.StringIO()
    screen = Terminal(Console(file=output, force_terminal=is_terminal, width=110, highlight=False, color_system=None))
    with screen.training(Path("runs/x"), MODEL, CHOICES, REASONS, Position(steps=steps, rows=8)):
        for step in range(1, steps + 1):
            screen.step(line(step, **({"held_out_loss": 4.25, "held_out_bits_per_byte": 1.5} if step == 60 else {})))
        screen.say("a note")
    return output.getvalue()


def test_a_pipe_gets_plain_lines_about_twenty_of_them() -> None:
    text = shown(is_terminal=False)
    assert "\x1b" not in text
    steps = [row for row in text.splitlines() if row.startswith("step")]
    assert 20 <= len(steps) <= 22
    assert any("held out 4.2500 (1.500 bits/byte)" in row for row in steps)
    assert "step     100/100  loss 4.0000" in steps[-1]


def test_plain_lines_say_where_the_band_is_only_when_that_changes() -> None:
    output = io.StringIO()
    terminal = Terminal(Console(file=output, width=200))
    told = [
        "",
        "inside the band",
        "inside the band",
        "0.08 above it",
        "0.09 above it",
        "0.09 above it",
    ]
    for step, band in enumerate(told, start=1):
        terminal.step(line(step, held_out_loss=2.0, held_out_bits_per_byte=3.0, band=band))
    said = [re.sub(r".*bits/byte\)\s*", "", text) for text in output.getvalue().splitlines()]
    assert said == ["", "inside the band", "", "0.08 above it", "0.09 above it", ""]


def test_a_terminal_shows_every_figure_and_the_curve() -> None:
    text = shown(is_terminal=True)
    for figure in (
        "step 100 of 100",
        "640 tokens/s",
        "1.00 GB",
        "4.250",
        "1.500 bits/byte",
        "MFU n/a",
        "0:10 gone",
        "█",
    ):
        assert figure in text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_score_of_a_task_is_shown(is_terminal: bool) -> None:
    output = io.StringIO()
    screen = Terminal(Console(file=output, force_terminal=is_terminal, width=110, highlight=False, color_system=None))
    scores = {"piqa_accuracy_norm": 0.615, "piqa_accuracy_norm_standard_error": 0.034}
    with screen.training(Path("runs/x"), MODEL, CHOICES, REASONS, Position(steps=2, rows=8)):
        screen.step(line(1, held_out_loss=4.25, held_out_bits_per_byte=1.5, **scores))
        screen.step(line(2))  # stays in the live view
    assert re.search(r"piqa +0\.615 ± 0\.034", output.getvalue())
    last = output.getvalue().rpartition("step 2 of 2" if is_terminal else "2/2")[2]
    assert ("piqa" in last) == is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_every_choice_is_shown_with_its_reason(is_terminal: bool) -> None:
    text = shown(is_terminal=is_terminal)
    for words in ("runs/x", "parameters", "64 tokens", "cpu", "bf16", "off", "because", "a note"):
        assert words in text


def test_with_lora_the_header_says_how_much_is_trained() -> None:
    output = io.StringIO()
    screen = Terminal(Console(file=output, width=110))
    with screen.training(Path("runs/x"), MODEL, CHOICES, REASONS, Position(steps=1, rows=8), lora_rank=2):
        pass
    # 2 * (in + out), for layers of 16 to 48, 16 to 16, 16 to 64 and 64 to 16
    assert re.search(r"trained +512 parameters +LoRA of rank 2; the model.s own are frozen", output.getvalue())
    assert "LoRA" not in shown(is_terminal=False)


def test_the_time_left_is_tokens_left_over_speed() -> None:
    assert "left 0:04" in shown(is_terminal=False).split("step      60/100")[1]  # 40 steps * 64 tokens / 640


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (86399, "23:59:59")]
)
def test_a_clock_reads_as_people_write_it(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_curve_falls_from_top_left_to_bottom_right() -> None:
    lines = curve([10.0 - i / 10 for i in range(100)], width=20, height=4)
    assert len(lines) == 4
    assert lines[0].startswith("  9.8")
    assert lines[-1].startswith("  0.")
    heights = [sum(LEVELS.index(row[7 + column]) for row in lines) for column in range(20)]
    assert heights == sorted(heights, reverse=True)
    assert heights[0] == 4 * 8


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [math.inf, 1.0, math.nan]])
def test_a_curve_of_odd_values_does_not_fail(values: list[float]) -> None:
    assert isinstance(curve(values, width=10, height=3), list)


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Quiet()
    with screen.training(Path("runs/x"), MODEL, CHOICES, REASONS, Position(steps=1, rows=8)):
        screen.step(line(1))
        screen.say("hush")
    assert capsys.readouterr().out == ""
