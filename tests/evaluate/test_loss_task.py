"""The task `loss`: the same digits every time, and bits per byte that compare across tokenizers."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from quillgpt.config import DataConfig, ModelConfig
from quillgpt.data import load_data_tokenizer
from quillgpt.data.prepare import prepare
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import ConfigError, DataError
from quillgpt.evaluate.held_out_loss import evaluate_held_out
from quillgpt.evaluate.held_out_text import HeldOutText, NamedData, chosen_splits, own_split
from quillgpt.evaluate.loss_task import score_loss
from quillgpt.evaluate.results import Computed, ModelRecord
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import Tokenizer, bytes_per_token, load_tokenizer

TEXT = "Die naïve Katze 🙂 sat on the mat, und zwar dort.\n" * 30


@pytest.fixture(scope="module")
def trained_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of text prepared with a tokenizer that learned it."""
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    prepare(
        DataConfig(source="text", path=str(folder / "text.txt"), tokenizer="bpe"), vocab_size=280, out=folder / "data"
    )
    return folder / "data"


@pytest.fixture(params=["byte", "bpe"])
def tokenizer(request: pytest.FixtureRequest, trained_bpe: Path) -> Tokenizer:
    return load_tokenizer("byte") if request.param == "byte" else load_data_tokenizer(trained_bpe)


def model_of(vocab_size: int, *, certain: bool = True) -> GPT:
    torch.manual_seed(3)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=24, vocab_size=vocab_size, dropout=0.3))
    if not certain:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    return model


def test_a_model_that_knows_nothing_has_the_loss_of_its_vocabulary(
    tokenizer: Tokenizer, prepared: Path, tmp_path: Path
) -> None:
    """Logits are all 0: each token costs ln V, whatever it is, and the bytes are those of the text."""
    text = NamedData(path=str(prepared)).split("val", tokenizer, tmp_path, 0)
    result = score_loss(model_of(tokenizer.vocab_size, certain=False), tokenizer, text, batch_size=4)
    assert result.scores["loss"] == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)
    assert result.scores["perplexity"] == pytest.approx(tokenizer.vocab_size, rel=1e-5)
    bits = result.held_out.tokens * math.log2(tokenizer.vocab_size)
    assert result.scores["bits_per_byte"] == pytest.approx(bits / result.held_out.bytes, rel=1e-6)
    assert result.standard_errors["loss"] == pytest.approx(0.0, abs=1e-6)


def test_the_byte_count_is_that_of_the_text_whatever_the_tokenizer(
    tokenizer: Tokenizer, prepared: Path, tmp_path: Path
) -> None:
    model = model_of(tokenizer.vocab_size)
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    of_file = NamedData(path=str(tmp_path / "a.txt")).split("val", tokenizer, tmp_path / "1", 0)
    of_directory = NamedData(path=str(prepared)).split("val", tokenizer, tmp_path / "2", 0)
    assert score_loss(model, tokenizer, of_file, batch_size=4).held_out.bytes == len(TEXT.encode())
    expected = TokenDataset.open(prepared, "val").text_bytes
    assert score_loss(model, tokenizer, of_directory, batch_size=4).held_out.bytes == expected
    assert of_directory.fingerprint == TokenDataset.open(prepared, "val").fingerprint


def test_data_with_the_models_tokenizer_is_not_encoded_again(prepared: Path, tmp_path: Path) -> None:
    text = NamedData(path=str(prepared)).split("val", load_data_tokenizer(prepared), tmp_path / "none", 0)
    assert text.dataset.directory == prepared
    assert not (tmp_path / "none").exists()


def test_two_calls_give_the_same_digits_and_draw_no_random_number(prepared: Path) -> None:
    tokenizer = load_data_tokenizer(prepared)
    model = model_of(tokenizer.vocab_size).train()
    before = torch.get_rng_state()
    text = own_split(prepared, "val")
    first, second = (score_loss(model, tokenizer, text, batch_size=4) for _ in range(2))
    assert first.held_out == second.held_out
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_the_models_own_data_is_scored_as_training_scores_it(prepared: Path) -> None:
    tokenizer = load_data_tokenizer(prepared)
    model = model_of(tokenizer.vocab_size)
    text = own_split(prepared, "val")
    windows = text.windows(24, 400)
    theirs = evaluate_held_out(model, windows, bytes_per_token(tokenizer), batch_size=4)
    assert windows.before == ()
    assert score_loss(model, tokenizer, text, max_tokens=400, batch_size=4).held_out == theirs


def test_the_standard_errors_belong_to_their_scores(prepared: Path) -> None:
    """Bits per byte are the loss times a constant of the text; perplexity is e to the loss."""
    tokenizer = load_data_tokenizer(prepared)
    result = score_loss(model_of(tokenizer.vocab_size), tokenizer, own_split(prepared, "val"), batch_size=4)
    scores, errors = result.scores, result.standard_errors
    assert errors["loss"] == result.held_out.standard_error > 0
    assert errors["bits_per_byte"] / errors["loss"] == pytest.approx(scores["bits_per_byte"] / scores["loss"])
    step = 1e-6 * errors["loss"]
    slope = (math.exp(scores["loss"] + step) - math.exp(scores["loss"] - step)) / (2 * step)
    assert errors["perplexity"] == pytest.approx(slope * errors["loss"], rel=1e-4)


def test_the_heartbeat_tells_the_windows_done(prepared: Path) -> None:
    tokenizer = load_data_tokenizer(prepared)
    text, told = own_split(prepared, "val"), []
    score_loss(
        model_of(tokenizer.vocab_size),
        tokenizer,
        text,
        max_tokens=24 * 10,
        batch_size=4,
        heartbeat=lambda done, count: told.append((done, count)),
    )
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_a_published_loss_stands_beside_the_same_data_only(prepared: Path) -> None:
    tokenizer = load_data_tokenizer(prepared)
    own = own_split(prepared, "val")
    gpt2 = ModelRecord(name="gpt2", fingerprint="", parameters=1)
    computed = Computed(device="cpu", dtype="fp32", threads=1, torch="")
    model = model_of(tokenizer.vocab_size)

    def published(text: HeldOutText, name: ModelRecord) -> dict[str, float]:
        result = score_loss(model, tokenizer, text, max_tokens=24, batch_size=4)
        return dict(result.evaluation(name, computed, limit=24).published)

    web = dataclasses.replace(own, source="openwebtext")
    assert published(web, gpt2) == {"loss": 3.12}
    assert published(dataclasses.replace(web, split="train"), gpt2) == {"loss": 3.11}
    assert published(own, gpt2) == {}
    assert published(web, dataclasses.replace(gpt2, name="runs/gpt2")) == {}


def test_text_without_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="there is no text in it"):
        NamedData(path=str(tmp_path / "empty.txt")).split("val", load_tokenizer("byte"), tmp_path / "out", 0)


def test_one_character_is_enough(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("x")
    tokenizer = load_tokenizer("byte")
    text = NamedData(path=str(tmp_path / "one.txt")).split("val", tokenizer, tmp_path / "out", 0)
    result = score_loss(model_of(257), tokenizer, text, batch_size=4).held_out
    assert (result.tokens, result.bytes) == (2, 1)  # the character, and the end of the text


@pytest.mark.parametrize(("text", "expected"), [("val", ["val"]), ("train, val", ["train", "val"])])
def test_splits_are_a_list(text: str, expected: list[str]) -> None:
    assert chosen_splits(text) == expected


@pytest.mark.parametrize("text", ["", "vla", "val,", "test"])
def test_another_split_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"splits = .*choose one of: train, val"):
        chosen_splits(text)
