"""Validation loss equals explicit sums; the task `loss` gives bits per byte that compare across tokenizers."""

import dataclasses
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from quillgpt.config import DataConfig, ModelConfig
from quillgpt.data import load_data_tokenizer
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.loader import ValidationWindows
from quillgpt.data.prepare import prepare
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, DataError
from quillgpt.evaluate.loss import evaluate_loss, score_loss
from quillgpt.evaluate.results import Evaluation, ModelRecord, RuntimeRecord
from quillgpt.evaluate.text import (
    EvaluationData,
    compressor_bits_per_byte,
    gzip_bytes,
    parse_splits,
    prepared_split,
    xz_bytes,
)
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import Tokenizer, bytes_per_token, load_tokenizer

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=16, context_length=8, vocab_size=11, dropout=0.5)
BYTES = np.array([0, 1, 2, 3, 1, 1, 1, 4, 2, 1, 1])  # token 0 is end of text
TEXT = "Die naïve Katze 🙂 sat on the mat, und zwar dort.\n" * 30


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(1)
    return GPT(CONFIG).double()


def windows(count: int) -> ValidationWindows:
    tokens = np.random.default_rng(0).integers(0, 11, count).tolist()
    return ValidationWindows(TokenDataset.from_documents([tokens], 11), CONFIG.context_length, 10_000)


def slow_losses(model: GPT, tokens: list[int]) -> list[float]:
    """The loss of each token, window by window."""
    losses = []
    model.eval()
    for start in range(0, len(tokens) - 1, CONFIG.context_length):
        window = tokens[start : start + CONFIG.context_length + 1]
        logits = model(torch.tensor([window[:-1]]))[0]
        losses += [-F.log_softmax(logits[i].float(), -1)[target].item() for i, target in enumerate(window[1:])]
    return losses


def test_the_loss_is_the_mean_over_every_target(model: GPT) -> None:
    for count in (2, 9, 10, 17, 100):
        data = windows(count)
        tokens = data.dataset.shards[0].tokens.tolist()
        losses = slow_losses(model, tokens)
        result = evaluate_loss(model, data, BYTES, batch_size=3)
        assert result.tokens == len(losses) == count - 1
        assert result.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)
        text_bytes = sum(int(BYTES[token]) for token in tokens[1:])
        assert result.bytes == text_bytes
        assert result.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / max(1, text_bytes), rel=1e-6)


def test_the_standard_error_is_that_of_a_mean_over_windows(model: GPT) -> None:
    data = windows(8 * 25 + 1)  # 25 full windows
    losses = torch.tensor(slow_losses(model, data.dataset.shards[0].tokens.tolist())).view(25, 8).mean(dim=1)
    result = evaluate_loss(model, data, BYTES, batch_size=4)
    assert result.standard_error == pytest.approx(losses.std().item() / math.sqrt(25), rel=1e-5)


def test_the_batch_size_does_not_change_the_result(model: GPT) -> None:
    expected = evaluate_loss(model, windows(100), BYTES, batch_size=1)
    for batch_size in (2, 5, 64):
        found = evaluate_loss(model, windows(100), BYTES, batch_size=batch_size)
        assert found.loss == pytest.approx(expected.loss, rel=1e-12)
        assert (found.tokens, found.bytes) == (expected.tokens, expected.bytes)


def test_evaluating_twice_gives_the_same_digits_and_draws_no_random_number(model: GPT, prepared: Path) -> None:
    model.train()
    tokenizer, scored = load_data_tokenizer(prepared), small_gpt(257).train()
    before = torch.get_rng_state()
    first, second = (evaluate_loss(model, windows(100), BYTES, batch_size=4) for _ in range(2))
    assert first == second  # with dropout on, these would differ
    results = [score_loss(scored, tokenizer, prepared_split(prepared, "val"), batch_size=4) for _ in range(2)]
    assert results[0] == dataclasses.replace(results[1], seconds=results[0].seconds)
    assert model.training
    assert scored.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_sums_of_the_ranks_add_up_to_those_of_one(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    sums: list[torch.Tensor] = []
    monkeypatch.setattr("quillgpt.evaluate.loss.all_reduce_sum", lambda values, ranks: sums.append(values) or values)
    evaluate_loss(model, windows(100), BYTES, batch_size=4)
    alone = sums[:2]
    sums.clear()
    for rank in range(3):
        evaluate_loss(model, windows(100), BYTES, batch_size=4, ranks=Ranks(rank=rank, world_size=3))
    assert torch.allclose(sum(sums[::2]), alone[0])
    assert torch.equal(sum(sums[1::2]), alone[1])


def test_compressed_sizes_equal_the_command_line_tools(tmp_path: Path) -> None:
    text = Path(__file__).read_bytes() * 3
    (tmp_path / "text").write_bytes(text)
    for tool, ours in ((["gzip", "-9", "-n", "-c"], gzip_bytes(text)), (["xz", "-9e", "-c", "-T1"], xz_bytes(text))):
        if shutil.which(tool[0]) is None:
            pytest.skip(f"no {tool[0]} here")
        theirs = len(subprocess.run([*tool, str(tmp_path / "text")], capture_output=True, check=True).stdout)
        assert abs(ours - theirs) <= 16, tool


def test_known_training_text_makes_repeated_validation_text_nearly_free() -> None:
    text = Path(__file__).read_bytes()
    figures = compressor_bits_per_byte(text, text)
    assert figures["xz -9e, knowing the training text"] < 0.1 * figures["xz -9e"]
    assert 1.0 < figures["xz -9e"] < figures["gzip -9"] * 1.1


# The task `loss`


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    """Bytes, and a BPE trained on the text."""
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    settings = DataConfig(source="text", path=str(folder / "text.txt"), tokenizer="bpe")
    prepare(settings, vocab_size=280, out=folder / "data")
    return [load_tokenizer("byte"), load_data_tokenizer(folder / "data")]


def small_gpt(vocab_size: int, *, is_zero: bool = False) -> GPT:
    torch.manual_seed(3)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=24, vocab_size=vocab_size, dropout=0.3))
    for parameter in model.parameters() if is_zero else ():
        parameter.data.zero_()
    return model


def test_a_model_of_zeros_has_the_loss_of_its_vocabulary(
    tokenizers: list[Tokenizer], prepared: Path, tmp_path: Path
) -> None:
    """All logits are 0: each token costs ln V, whatever it is, and the bytes are those of the text."""
    for tokenizer in tokenizers:
        size = tokenizer.vocab_size
        text = EvaluationData(path=str(prepared)).split("val", tokenizer, tmp_path / tokenizer.name, 0)
        result = score_loss(small_gpt(size, is_zero=True), tokenizer, text, batch_size=4)
        assert result.scores["loss"] == pytest.approx(math.log(size), rel=1e-6)
        assert result.scores["perplexity"] == pytest.approx(size, rel=1e-5)
        bits = result.items * math.log2(size)
        assert result.scores["bits_per_byte"] == pytest.approx(bits / result.bytes, rel=1e-6)
        assert result.standard_errors["loss"] == pytest.approx(0.0, abs=1e-6)


def test_the_bytes_are_those_of_the_text_whatever_the_tokenizer(
    tokenizers: list[Tokenizer], prepared: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    dataset = TokenDataset.open(prepared, "val")
    for tokenizer in tokenizers:
        model, folder = small_gpt(tokenizer.vocab_size), tmp_path / tokenizer.name
        of_file = EvaluationData(path=str(tmp_path / "a.txt")).split("val", tokenizer, folder / "1", 0)
        of_directory = EvaluationData(path=str(prepared)).split("val", tokenizer, folder / "2", 0)
        assert score_loss(model, tokenizer, of_file, batch_size=4).bytes == len(TEXT.encode())
        assert score_loss(model, tokenizer, of_directory, batch_size=4).bytes == dataset.text_bytes
        assert of_directory.fingerprint == dataset.fingerprint


def test_data_in_the_models_tokens_is_not_encoded_again(prepared: Path, tmp_path: Path) -> None:
    text = EvaluationData(path=str(prepared)).split("val", load_data_tokenizer(prepared), tmp_path / "none", 0)
    assert text.dataset.directory == prepared
    assert not (tmp_path / "none").exists()


def test_a_models_own_data_is_scored_as_in_training(prepared: Path) -> None:
    tokenizer, text, model = load_data_tokenizer(prepared), prepared_split(prepared, "val"), small_gpt(257)
    windows = text.windows(24, 400)
    expected = evaluate_loss(model, windows, bytes_per_token(tokenizer), batch_size=4)
    assert windows.before == ()
    result = score_loss(model, tokenizer, text, max_tokens=400, batch_size=4)
    assert (result.scores["loss"], result.scores["bits_per_byte"]) == (expected.loss, expected.bits_per_byte)
    assert (result.items, result.bytes) == (expected.tokens, expected.bytes)


def test_the_standard_errors_belong_to_their_scores(prepared: Path) -> None:
    """Bits per byte are the loss times a constant of the text; perplexity is e to the loss."""
    result = score_loss(small_gpt(257), load_data_tokenizer(prepared), prepared_split(prepared, "val"), batch_size=4)
    scores, errors = result.scores, result.standard_errors
    assert errors["loss"] > 0
    assert errors["bits_per_byte"] / errors["loss"] == pytest.approx(scores["bits_per_byte"] / scores["loss"])
    step = 1e-6 * errors["loss"]
    slope = (math.exp(scores["loss"] + step) - math.exp(scores["loss"] - step)) / (2 * step)
    assert errors["perplexity"] == pytest.approx(slope * errors["loss"], rel=1e-4)


def test_progress_counts_windows(prepared: Path) -> None:
    counts: list[tuple[int, int]] = []
    score_loss(
        small_gpt(257),
        load_data_tokenizer(prepared),
        prepared_split(prepared, "val"),
        max_tokens=24 * 10,
        batch_size=4,
        progress=lambda *count: counts.append(count),
    )
    assert counts == [(4, 10), (8, 10), (10, 10)]


def test_a_published_loss_is_shown_for_the_same_model_and_data_only(prepared: Path) -> None:
    tokenizer, own, model = load_data_tokenizer(prepared), prepared_split(prepared, "val"), small_gpt(257)
    web = dataclasses.replace(own, source="openwebtext")
    runtime = RuntimeRecord(device="cpu", dtype="fp32", threads=1, torch="")
    for text, name, expected in (
        (web, "gpt2", {"loss": 3.12}),
        (dataclasses.replace(web, split="train"), "gpt2", {"loss": 3.11}),
        (own, "gpt2", {}),
        (web, "runs/gpt2", {}),
    ):
        result = score_loss(model, tokenizer, text, max_tokens=24, batch_size=4)
        record = ModelRecord(name=name, fingerprint="", parameters=1)
        assert Evaluation(model=record, computed=runtime, result=result).published == expected


def test_text_needs_one_character(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("byte")
    (tmp_path / "text.txt").touch()
    with pytest.raises(DataError, match="there is no text in it"):
        EvaluationData(path=str(tmp_path / "text.txt")).split("val", tokenizer, tmp_path / "0", 0)
    (tmp_path / "text.txt").write_text("x")
    text = EvaluationData(path=str(tmp_path / "text.txt")).split("val", tokenizer, tmp_path / "1", 0)
    result = score_loss(small_gpt(257), tokenizer, text, batch_size=4)
    assert (result.items, result.bytes) == (2, 1)  # the character, and the end of the text


def test_splits_are_a_list_of_known_names() -> None:
    assert parse_splits("val") == ["val"]
    assert parse_splits("train, val") == ["train", "val"]
    for text in ("", "vla", "val,", "test"):
        with pytest.raises(ConfigError, match=r"invalid splits: .*choose one of: train, val"):
            parse_splits(text)
