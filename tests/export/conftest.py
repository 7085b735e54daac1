"""A trained run, models with random weights in every part, and both as runs on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.cli import main as command_line
from quillgpt.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from quillgpt.model.gpt import GPT
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from quillgpt.training.loop import train

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 24, "vocab_size": 257}


@pytest.fixture(scope="session")
def trained_run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a GPT-2-shaped model that has learned the form of its documents."""
    out = tmp_path_factory.mktemp("trained") / "tiny"
    settings = {"device": "cpu", "dtype": "fp32", "compile": "off", "threads": 1, "out": str(out)}
    train(
        RunConfig(
            model=ModelConfig(**(SHAPE | {"context_length": 64})),
            data=DataConfig(source="text", path="", tokenizer="byte", data=str(prepared)),
            optim=OptimConfig(lr=1e-2, min_lr=1e-3, warmup_steps=4),
            train=TrainConfig(steps=120, batch_size=8, eval_every=120, eval_tokens=500, save_every=120, **settings),
        )
    )
    return out


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    return load_tokenizer("byte")


@pytest.fixture(scope="session")
def bpe_tokenizer() -> Tokenizer:
    texts = ["the quick brown fox jumps over the lazy dog\n" * 20, "def f(x):\n    return x ** 2\n" * 20]
    return train_tokenizer("bpe", texts, 290)


@pytest.fixture(scope="session")
def random_model() -> Callable[..., GPT]:
    """Build a model in which every weight matters: biases, norms and matrices are far from their initial values."""

    def build(**settings: object) -> GPT:
        torch.manual_seed(3)
        model = GPT(ModelConfig(**(SHAPE | settings))).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            for weight in [model.token_embedding.weight, *([] if model.head is None else [model.head.weight])]:
                weight[model.config.vocab_size :] = 0.0
        return model

    return build


@pytest.fixture
def random_run(random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., str]:
    """Save a random model as a run, and return its directory."""

    def save(tokenizer: Tokenizer = byte_tokenizer, *, damage: str = "", **settings: object) -> str:
        model = random_model(**({"vocab_size": tokenizer.vocab_size} | settings))
        if damage:
            model.get_parameter(damage).data[0] = float("nan")
        path = tmp_path / "runs" / "random"
        checkpoint.save(
            RunDirectory(path),
            step=7,
            model=model,
            optimizer_state={},
            state={},
            runtime={},
            config_toml="",
            tokenizer=tokenizer,
            data_fingerprint="",
            val_loss=None,
        )
        return str(path)

    return save


@pytest.fixture
def greedy(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str, int], str]:
    """What `quill sample --temperature 0` prints for the trained run: the prompt and `count` new tokens."""

    def sample(prompt: str, count: int) -> str:
        capsys.readouterr()
        command_line.run(["sample", str(trained_run), "-p", prompt, "-m", str(count), "--temperature", "0"])
        return capsys.readouterr().out.removesuffix("\n")

    return sample


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two sequences as long as the context of a random model."""
    return torch.randint(257, (2, 24), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def difference() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The largest difference of two tensors as a fraction of the largest value; infinite for other shapes."""

    def compare(got: torch.Tensor, expected: torch.Tensor) -> float:
        if got.shape != expected.shape:
            return float("inf")
        return float((got - expected).abs().max() / expected.abs().max())

    return compare
