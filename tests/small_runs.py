"""What tests ask of small runs: changed settings, metrics, tensors, and a kill in the middle of a step."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quillgpt import checkpoint, records
from quillgpt.checkpoint import Checkpoint
from quillgpt.config import RunConfig, updated
from quillgpt.evaluate.loss import ValidationLoss
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.runtime import Runtime
from quillgpt.training import loop

RUNTIME = Runtime(
    device="cpu",
    dtype="fp32",
    threads=1,
    compile=False,
    compile_backend="inductor",
    matmul_precision="high",
    dist_backend="gloo",
    global_batch_size=4,
    micro_batch_size=1,
    world_size=1,
)


def changed(config: RunConfig, **settings: Any) -> RunConfig:
    return updated(config, settings, where="test")


def run_of(config: RunConfig) -> RunDirectory:
    return RunDirectory(Path(config.train.out))


def newest(config: RunConfig) -> Checkpoint:
    return checkpoint.committed(run_of(config))[-1]


def lines_of(config: RunConfig) -> list[dict[str, Any]]:
    return read_metrics(run_of(config).metrics)


def reseal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as only someone who also renews its SHA-256 can."""
    content = json.loads(path.read_text())
    del content[records.SEAL]
    change(content)
    path.write_text(json.dumps(records.seal(content)))


def column(config: RunConfig, name: str) -> list[Any]:
    """A column of the metrics, of the lines that have it."""
    return [line[name] for line in lines_of(config) if name in line]


def tensors_of(config: RunConfig) -> dict[str, torch.Tensor]:
    """The trained weights and the optimizer state of the newest checkpoint."""
    found = newest(config)
    return found.tensors(found.manifest.weights_file) | found.tensors(checkpoint.OPTIMIZER)


def weights_of(where: str | Path) -> dict[str, torch.Tensor]:
    """The weights of a loaded model."""
    return checkpoint.load_model(where)[0].state_dict()


def differing(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that are not equal to the bit."""
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


def assert_same_run(left: RunConfig, right: RunConfig) -> None:
    """Equal to the bit: step, loss and gradient norm of every line, and the tensors of the newest checkpoint."""
    for name in ("step", "train_loss", "grad_norm"):
        assert column(left, name) == column(right, name), name
    assert differing(tensors_of(left), tensors_of(right)) == []


def with_losses(patch: pytest.MonkeyPatch, *losses: float) -> None:
    """Let the evaluations of a run return these validation losses, one after the other."""
    left = iter(losses)

    def validate(*_: object) -> ValidationLoss:
        return ValidationLoss(loss=next(left), standard_error=0.0, bits_per_byte=1.0, tokens=1, bytes=1)

    patch.setattr(loop, "validate", validate)


def killed_in_step(config: RunConfig, step: int) -> None:
    """Train in a fork that SIGKILL ends after the backward pass of a step."""
    gradients, child = loop.gradients, os.fork()
    if child == 0:

        def gradients_then_kill(*arguments: Any, **numbers: Any) -> torch.Tensor:
            loss_sum = gradients(*arguments, **numbers)
            if numbers["step"] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return loss_sum

        loop.gradients = gradients_then_kill
        try:
            loop.train(config)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
