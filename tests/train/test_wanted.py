"""What an evaluation is computed with: what is asked, else what the run chose on such a device, else what is usual."""

from pathlib import Path
from typing import Any

import pytest

from quillgpt.config import ModelConfig
from quillgpt.distributed import Ranks
from quillgpt.hardware import Machine
from quillgpt.tokenizer import load_tokenizer
from quillgpt.train.subject import Subject, Untrained
from quillgpt.train.wanted import BATCH_TOKENS, Means, Wanted, choose_means

MACHINE = Machine(
    cuda_devices=0,
    mps=False,
    cpu_bf16=True,
    cuda_bf16=False,
    cores=6,
    cpu_memory_bytes=1 << 34,
    device_memory_bytes=0,
    name="a machine",
    compiler=True,
)
CHOSEN = {"device": "cpu", "dtype": "bf16", "threads": 3, "matmul_precision": "high", "batch_size": 5}
MODEL = ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=64, vocab_size=257)


def means(resolved: dict[str, Any], **wanted: Any) -> Means:
    subject = Subject(
        name="x",
        config=MODEL,
        source=Untrained(seed=1, config=MODEL),
        tokenizer=load_tokenizer("byte"),
        own_data=None,
        folder=Path(),
        file_name="x",
        resolved=resolved,
    )
    return choose_means(subject, Wanted(**wanted), MACHINE, Ranks(), lambda text: None)


def test_a_run_is_computed_as_it_was_trained() -> None:
    found = means(CHOSEN)
    assert (found.device, found.dtype, found.threads, found.matmul_precision) == ("cpu", "bf16", 3, "high")
    assert found.batch_size == 5


@pytest.mark.parametrize("resolved", [{}, {**CHOSEN, "device": "cuda:0"}], ids=["no run", "trained on a GPU"])
def test_others_are_computed_in_fp32_on_all_cores(resolved: dict[str, Any]) -> None:
    found = means(resolved)
    assert (found.device, found.dtype, found.threads, found.matmul_precision) == ("cpu", "fp32", 6, "highest")
    assert (found.batch_size, found.batch_tokens) == (BATCH_TOKENS // 64, BATCH_TOKENS)


def test_what_is_asked_for_wins() -> None:
    found = means(CHOSEN, dtype="fp32", threads=2, batch_size=7)
    assert (found.dtype, found.threads, found.batch_size, found.batch_tokens) == ("fp32", 2, 7, 7 * 64)
    assert means(CHOSEN, batch_tokens=128).batch_size == 2
    assert means(CHOSEN, batch_tokens=1).batch_size == 1  # less than one sequence is not possible
