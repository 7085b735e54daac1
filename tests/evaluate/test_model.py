"""What a model is evaluated with: the request, else the runtime of its run on such a device, else the default."""

from typing import Any

from quillgpt.config import ModelConfig
from quillgpt.distributed import Ranks
from quillgpt.evaluate.model import (
    BATCH_TOKENS,
    EvaluatedModel,
    EvaluationRequest,
    EvaluationRuntime,
    evaluation_runtime,
)
from quillgpt.runtime import Machine
from quillgpt.tokenizer import load_tokenizer

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
TRAINED = {"device": "cpu", "dtype": "bf16", "threads": 3, "matmul_precision": "high", "micro_batch_size": 5}
MODEL = ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=64, vocab_size=257)


def runtime(trained: dict[str, Any], **request: Any) -> EvaluationRuntime:
    tokenizer = load_tokenizer("byte")
    evaluated = EvaluatedModel(name="x", config=MODEL, tokenizer=tokenizer, file_name="x", runtime=trained)
    return evaluation_runtime(evaluated, EvaluationRequest(**request), MACHINE, Ranks())


def test_a_run_is_evaluated_with_the_runtime_it_was_trained_with() -> None:
    found = runtime(TRAINED)
    assert (found.device, found.dtype, found.threads, found.matmul_precision) == ("cpu", "bf16", 3, "high")
    assert found.batch_size == 5


def test_other_models_are_evaluated_in_fp32_on_all_cores() -> None:
    for trained in ({}, {**TRAINED, "device": "cuda:0"}):
        found = runtime(trained)
        assert (found.device, found.dtype, found.threads, found.matmul_precision) == ("cpu", "fp32", 6, "highest")
        assert (found.batch_size, found.batch_tokens) == (BATCH_TOKENS // 64, BATCH_TOKENS)


def test_the_request_comes_first() -> None:
    found = runtime(TRAINED, dtype="fp32", threads=2, batch_size=7)
    assert (found.dtype, found.threads, found.batch_size, found.batch_tokens) == ("fp32", 2, 7, 7 * 64)
    assert runtime(TRAINED, batch_tokens=128).batch_size == 2
    assert runtime(TRAINED, batch_tokens=1).batch_size == 1  # one sequence at least
