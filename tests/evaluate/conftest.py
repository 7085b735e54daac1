"""A small model that clearly prefers some candidates, and files of every task."""

from pathlib import Path

import pytest
import torch

from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT
from task_files import write_tasks


@pytest.fixture(scope="module")
def model() -> GPT:
    """Tokens are bytes, in float64; weights so large that candidates differ by much more than rounding."""
    torch.manual_seed(1)
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=160, vocab_size=257, dropout=0.5)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with twelve items of each task."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))
