"""Held-out loss against sums written out, and what must not change it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.data.held_out import HeldOutWindows
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.distributed import Ranks
from quillgpt.evaluate.compressors import compressor_bits_per_byte, gzip_bytes, xz_bytes
from quillgpt.evaluate.held_out_loss import evaluate_held_out
from quillgpt.model.gpt import GPT

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=16, context_length=8, vocab_size=11, dropout=0.5)
BYTES = np.array([0, 1, 2, 3, 1, 1, 1, 4, 2, 1, 1])  # token 0 is end of text


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(1)
    return GPT(CONFIG).double()


def windows(count: int, limit: int = 10_000) -> HeldOutWindows:
    tokens = np.random.default_rng(0).integers(0, 11, count).tolist()
    return HeldOutWindows(TokenDataset.from_documents([tokens], 11), CONFIG.context_length, limit)


def slow_losses(model: GPT, tokens: list[int]) -> list[float]:
    """Window by window and token by token."""
    losses = []
    model.eval()
    for start in range(0, len(tokens) - 1, CONFIG.context_length):
        piece = tokens[start : start + CONFIG.context_length + 1]
        logits = model(torch.tensor([piece[:-1]]))[0]
        losses += [-F.log_softmax(logits[i].float(), -1)[target].item() for i, target in enumerate(piece[1:])]
    return losses


@pytest.mark.parametrize("count", [2, 9, 10, 17, 100])
def test_the_loss_is_the_mean_over_every_target(model: GPT, count: int) -> None:
    data = windows(count)
    tokens = data.dataset.shards[0].tokens.tolist()
    losses = slow_losses(model, tokens)
    result = evaluate_held_out(model, data, BYTES, batch_size=3)
    assert result.tokens == len(losses) == count - 1
    assert result.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    text_bytes = sum(int(BYTES[token]) for token in tokens[1:])
    assert result.bytes == text_bytes
    assert result.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / max(1, text_bytes), rel=1e-6)


def test_the_standard_error_is_that_of_a_mean_over_windows(model: GPT) -> None:
    data = windows(8 * 25 + 1)  # 25 full windows
    losses = torch.tensor(slow_losses(model, data.dataset.shards[0].tokens.tolist())).view(25, 8).mean(dim=1)
    result = evaluate_held_out(model, data, BYTES, batch_size=4)
    assert result.standard_error == pytest.approx(losses.std().item() / math.sqrt(25), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_the_batch_size_does_not_change_the_result(model: GPT, batch_size: int) -> None:
    one = evaluate_held_out(model, windows(100), BYTES, batch_size=1)
    other = evaluate_held_out(model, windows(100), BYTES, batch_size=batch_size)
    assert other.loss == pytest.approx(one.loss, rel=1e-12)
    assert (other.tokens, other.bytes) == (one.tokens, one.bytes)


def test_evaluating_twice_gives_the_same_digits_and_touches_no_random_state(model: GPT) -> None:
    model.train()
    before = torch.get_rng_state()
    first = evaluate_held_out(model, windows(100), BYTES, batch_size=4)
    second = evaluate_held_out(model, windows(100), BYTES, batch_size=4)
    assert first == second  # with dropout on, these would differ
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_ranks_shares_add_up_to_the_whole(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[torch.Tensor] = []
    monkeypatch.setattr("quillgpt.evaluate.held_out_loss.total", lambda values, ranks: shares.append(values) or values)
    evaluate_held_out(model, windows(100), BYTES, batch_size=4)
    whole = shares[0]
    shares.clear()
    for rank in range(3):
        evaluate_held_out(model, windows(100), BYTES, batch_size=4, ranks=Ranks(rank=rank, world_size=3))
    torch.testing.assert_close(sum(shares[::2]), whole)


def test_the_byte_tokenizer_has_bits_per_byte_equal_to_loss_over_ln_2(prepared: Path) -> None:
    dataset = TokenDataset.open(prepared, "val")
    config = ModelConfig(n_layer=1, n_head=1, n_embd=16, context_length=16, vocab_size=257)
    one_each = np.array([1] * 256 + [0])
    result = evaluate_held_out(GPT(config), HeldOutWindows(dataset, 16, 10**6), one_each, batch_size=8)
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2) * result.tokens / result.bytes)


def test_compressor_figures_equal_the_command_line_tools(tmp_path: Path) -> None:
    import shutil
    import subprocess

    text = Path(__file__).read_bytes() * 3
    (tmp_path / "text").write_bytes(text)
    for tool, ours in ((["gzip", "-9", "-n", "-c"], gzip_bytes(text)), (["xz", "-9e", "-c", "-T1"], xz_bytes(text))):
        if shutil.which(tool[0]) is None:
            pytest.skip(f"no {tool[0]} here")
        theirs = len(subprocess.run([*tool, str(tmp_path / "text")], capture_output=True, check=True).stdout)
        assert abs(ours - theirs) <= 16, tool


def test_known_training_text_makes_repeated_held_out_text_nearly_free() -> None:
    text = Path(__file__).read_bytes()
    figures = compressor_bits_per_byte(text, text)
    assert figures["xz -9e, knowing the training text"] < 0.1 * figures["xz -9e"]
    assert 1.0 < figures["xz -9e"] < figures["gzip -9"] * 1.1
