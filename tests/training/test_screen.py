"""The training screen: plain lines in a pipe, a live view in a terminal, every number in both."""

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from quillgpt.config import ModelConfig
from quillgpt.progress import duration
from quillgpt.training.screen import Screen, Terminal
from quillgpt.training.state import TrainState
from small_runs import RUNTIME

MODEL = ModelConfig(n_layer=1, n_head=1, n_embd=16, context_length=8, vocab_size=100)
REASONS = dict.fromkeys(["device", "dtype", "threads", "attention", "compile", "batch_size"], "because")


def line(step: int, **more: Any) -> dict[str, Any]:
    numbers = {"step": step, "tokens": 64 * step, "train_loss": 5.0 - step / 100, "lr": 1e-3, "grad_norm": 0.5}
    numbers |= {"tokens_per_second": 640.0, "mfu": None, "memory_bytes": 10**9, "elapsed_seconds": step / 10}
    return numbers | more


class Shown:
    """A screen for a run of MODEL, and what it shows."""

    def __init__(self, *, is_terminal: bool = False, steps: int = 100, width: int = 110, **settings: Any) -> None:
        self.output = io.StringIO()
        terminal: Any = {"force_terminal": is_terminal, "width": width, "highlight": False, "color_system": None}
        self.screen = Terminal(Console(file=self.output, **terminal), **settings)
        self.runtime = replace(RUNTIME, dtype="bf16", threads=2, global_batch_size=8, micro_batch_size=4, steps=steps)

    def run(self, *lines: Mapping[str, Any], state: TrainState | None = None, lora_rank: int = 0) -> str:
        state = state or TrainState(global_batch_size=8)
        with self.screen.training(Path("runs/x"), MODEL, self.runtime, REASONS, state, lora_rank):
            for numbers in lines:
                self.screen.step(numbers)
        return self.output.getvalue()


def hundred_lines() -> list[dict[str, Any]]:
    return [line(step, **({"val_loss": 4.25, "val_bpb": 1.5} if step == 60 else {})) for step in range(1, 101)]


def test_a_pipe_gets_about_twenty_plain_lines() -> None:
    text = Shown().run(*hundred_lines())
    assert "\x1b" not in text
    steps = [row for row in text.splitlines() if row.startswith("step")]
    assert 20 <= len(steps) <= 22
    assert any("validation 4.2500 (1.500 bits/byte)" in row for row in steps)
    assert "step     100/100  loss 4.0000" in steps[-1]
    assert "left 0:04" in text.split("step      60/100")[1]  # 40 steps * 64 tokens / 640 tokens per second


def test_a_terminal_shows_every_number_and_the_curve() -> None:
    text = Shown(is_terminal=True).run(*hundred_lines())
    numbers = ("step 100 of 100", "640 tokens/s", "1.00 GB", "4.250", "1.500 bits/byte", "MFU n/a", "0:10", "⠤")
    assert [number for number in numbers if number not in text] == []


def test_the_runtime_is_shown_with_its_reasons_the_ramp_and_what_lora_trains() -> None:
    for is_terminal in (True, False):
        text = Shown(is_terminal=is_terminal).run()
        parts = ("runs/x", "parameters", "64 tokens", "2 micro-batches of 4", "cpu", "bf16", "off", "because", "new")
        assert [part for part in parts if part not in text] == []
        assert "LoRA" not in text
    # LoRA: 2 * (in + out), for layers of 16 to 48, 16 to 16, 16 to 64 and 64 to 16
    text = Shown().run(
        state=TrainState(step=30, global_batch_size=2, global_batch_size_changes=[[40, 4], [80, 8]]), lora_rank=2
    )
    assert re.search(r"trained +512 parameters +LoRA of rank 2", text)
    assert re.search(r"ramp +2 to 4 to 8 .*steps 0, 40, 80", text)
    assert "from step 30" in text


def test_the_accuracy_of_a_task_is_shown_and_stays_in_the_live_view() -> None:
    names = {"piqa_accuracy": 0.25, "piqa_accuracy_norm": 0.615, "lambada_accuracy": 0.5, "lambada_perplexity": 30.0}
    scores = names | {f"{name}_standard_error": 0.034 for name in names}
    for is_terminal in (True, False):
        text = Shown(is_terminal=is_terminal, steps=2).run(line(1, val_loss=4.25, val_bpb=1.5, **scores), line(2))
        assert re.search(r"piqa +0\.615 ± 0\.034", text)  # the normalized accuracy where a task has one
        assert re.search(r"lambada +0\.500 ± 0\.034", text)
        last = text.rpartition("step 2 of 2" if is_terminal else "2/2")[2]
        assert ("piqa" in last) == is_terminal


class Band:
    """A reference band with given texts, one for each step."""

    def __init__(self, *texts: str, reason: str = "") -> None:
        self.texts, self.reason = iter(texts), reason

    def start(self, run: Path) -> str:
        return self.reason

    def judge(self, line: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"band_excess": 0.5}

    def text(self) -> str:
        return next(self.texts)


def test_plain_lines_say_where_the_band_is_only_when_that_changes() -> None:
    texts = ["", "inside the band", "inside the band", "0.08 above it", "0.09 above it", "0.09 above it"]
    shown = Shown(width=200, band=Band(*texts))
    assert shown.screen.judge(line(1)) == {"band_excess": 0.5}
    text = shown.run(*(line(step, val_loss=2.0, val_bpb=3.0) for step in range(1, 7)))
    rows = [re.sub(r".*bits/byte\)\s*", "", row) for row in text.splitlines() if row.startswith("step")]
    assert rows == ["", "inside the band", "", "0.08 above it", "0.09 above it", ""]
    assert "0.08 above it" in Shown(is_terminal=True, width=200, band=Band("0.08 above it")).run(line(1))


def test_the_reason_for_no_band_is_logged_once(messages: list[str]) -> None:
    Shown(band=Band("", "", reason="no band for these settings")).run(line(1), line(2))
    assert messages == ["reference band: no band for these settings"]


def test_a_clock_reads_as_people_write_it() -> None:
    texts = {0: "0:00", 59.6: "1:00", 61: "1:01", 3600: "1:00:00", 86399: "23:59:59"}
    assert {seconds: duration(seconds) for seconds in texts} == texts


def test_the_default_screen_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    with screen.training(Path("runs/x"), MODEL, RUNTIME, REASONS, TrainState(global_batch_size=8)):
        screen.step(line(1))
        assert screen.judge(line(1)) == {}
    with screen.preparing() as show:
        show("data", 1, 2)
    assert capsys.readouterr().out == ""
