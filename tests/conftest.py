"""Shared fixtures: a small prepared data set, settings of runs that take a second, and the library's messages."""

import logging
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from quillgpt.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from quillgpt.data.prepare import prepare
from quillgpt.training.loop import train
from small_runs import changed

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def unignored_signals() -> Iterator[None]:
    """Handle the signals that `nohup make test &` ignores: child processes inherit an ignored signal, not a handler."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: lambda number, frame: None}
    former = {number: signal.signal(number, handler) for number, handler in handlers.items() if is_ignored(number)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def is_ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """The messages that the library logs during the test."""
    logger, handler = logging.getLogger("quillgpt"), _Messages()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a few hundred short documents in bytes."""
    folder = tmp_path_factory.mktemp("prepared")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(300):
        words = " ".join(f"word{(number * k) % 17}" for k in range(1, 30))
        (texts / f"{number:03}.txt").write_text(f"document {number}: {words}\n")
    settings = DataConfig(source="text", path=str(texts), tokenizer="byte")
    prepare(settings, vocab_size=257, out=folder / "data")
    return folder / "data"


@pytest.fixture
def small_run(prepared: Path, tmp_path: Path) -> RunConfig:
    """Settings of a tiny model on the prepared data, fp32, eager, one thread."""
    return RunConfig(
        model=ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=32, vocab_size=257),
        data=DataConfig(source="text", path="", tokenizer="byte", data=str(prepared)),
        optim=OptimConfig(lr=3e-3, min_lr=3e-4, warmup_steps=4),
        train=TrainConfig(
            steps=20,
            batch_size=4,
            gradient_accumulation_steps=2,
            eval_every=10,
            eval_tokens=500,
            save_every=10,
            log_every=1,
            device="cpu",
            dtype="fp32",
            compile="off",
            threads=1,
            out=str(tmp_path / "run"),
        ),
    )


@pytest.fixture(scope="session")
def base_folder(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/base, a small model that has learned something."""
    folder = tmp_path_factory.mktemp("base")
    flat = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32, "vocab_size": 257, "steps": 20}
    flat |= {"source": "text", "tokenizer": "byte", "data": str(prepared), "batch_size": 8, "lr": 3e-3, "min_lr": 0.0}
    flat |= {"device": "cpu", "dtype": "fp32", "compile": "off", "threads": 1, "eval_tokens": 500, "eval_every": 0}
    train(changed(RunConfig(), **flat, out=str(folder / "runs" / "base")))
    return folder


@pytest.fixture
def here(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the working directory."""
    shutil.copytree(base_folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fine_tuning(small_run: RunConfig, here: Path) -> RunConfig:
    """A run of ten steps that starts from runs/base."""
    return changed(small_run, init="runs/base", out="runs/fine", steps=10, eval_every=5, save_every=5, keep_last=9)


@pytest.fixture
def lora_tuning(fine_tuning: RunConfig) -> RunConfig:
    """The same with adapters."""
    return changed(fine_tuning, out="runs/lora", lora_rank=4, lora_alpha=8.0)
