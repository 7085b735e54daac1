"""What is asked of an evaluation, and what a model is computed with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from quillgpt.distributed import Ranks
from quillgpt.evaluate.held_out_text import NamedData
from quillgpt.evaluate.results import Computed
from quillgpt.evaluate.tasks import TASK_DATA, Task
from quillgpt.hardware import Machine
from quillgpt.train.resolve import choose_device, choose_dtype, choose_threads
from quillgpt.train.subject import Subject

BATCH_TOKENS = 8192
"""In a pass: small enough for any machine that holds the model, large enough to keep a CPU busy."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of every model. 0, "auto" and "" stand for: as its run chose, or as is usual here."""

    has_loss: bool = True
    tasks: tuple[tuple[Task, int], ...] = ()
    harness: tuple[str, ...] = ()
    limit: int = 0
    splits: tuple[str, ...] = ("val",)
    data: NamedData | None = None
    task_data: Path = TASK_DATA
    task_data_flag: str = "--data-dir"
    eval_tokens: int = 0
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    batch_size: int = 0
    batch_tokens: int = 0
    out: str = ""
    dist_backend: str = "auto"
    dist_timeout_seconds: int = 600


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a model is computed with; `batch_size` are windows at a time, `batch_tokens` tokens of questions."""

    device: str
    dtype: str
    threads: int
    matmul_precision: str
    batch_size: int
    batch_tokens: int

    @property
    def record(self) -> Computed:
        """What of it is kept with a result."""
        return Computed(device=self.device, dtype=self.dtype, threads=self.threads, torch=str(torch.__version__))


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """Who is told: a line that stays; and how far something is: what, done, of how much."""

    say: Callable[[str], None] = lambda text: None
    progress: Callable[[str, int, int], None] = lambda what, done, count: None


def choose_means(subject: Subject, wanted: Wanted, machine: Machine, ranks: Ranks, say: Callable[[str], None]) -> Means:
    """What to compute with: as asked, or as the model's run did on such a device, so that the digits are the same."""
    device = choose_device(wanted.device, machine, ranks)[0]
    kind = device.partition(":")[0]
    was_here = str(subject.resolved.get("device", "")).partition(":")[0] == kind
    former = subject.resolved if was_here else {}
    asked = str(former.get("dtype", "fp32")) if wanted.dtype == "auto" else wanted.dtype
    dtype, reason = choose_dtype(asked, kind, machine)
    if dtype != asked:
        say(f"dtype {dtype}: {reason}")
    length = subject.config.context_length
    tokens = wanted.batch_tokens or BATCH_TOKENS
    batch_size = wanted.batch_size or (0 if wanted.batch_tokens else int(former.get("batch_size", 0)))
    return Means(
        device=device,
        dtype=dtype,
        threads=wanted.threads or int(former.get("threads", 0)) or choose_threads(0, machine, ranks)[0],
        matmul_precision=str(former.get("matmul_precision", "highest")),
        batch_size=batch_size or max(1, tokens // length),
        batch_tokens=wanted.batch_size * length if wanted.batch_size else tokens,
    )
