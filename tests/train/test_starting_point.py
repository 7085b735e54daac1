"""`--init`: the model to start from gives weights, shape and tokenizer; what does not fit is told at once."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from quillgpt import checkpoint
from quillgpt.cli.settings import load_settings
from quillgpt.config import ModelConfig, RunConfig, updated
from quillgpt.data.prepare import prepare
from quillgpt.errors import CheckpointError, ConfigError, DataError
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import SIZES
from quillgpt.tokenizer import load_tokenizer, train_tokenizer
from quillgpt.train.loop import train
from quillgpt.train.starting_point import data_settings, starting_point

THEIRS = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 48, "vocab_size": 257}


@pytest.fixture
def theirs(tmp_path: Path) -> tuple[GPT2LMHeadModel, Path]:
    """A directory in Hugging Face's format whose vocabulary is our bytes."""
    torch.manual_seed(5)
    model = GPT2LMHeadModel(GPT2Config(**THEIRS, bos_token_id=256, eos_token_id=256)).eval()
    directory = tmp_path / "theirs"
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(load_tokenizer("byte").to_json())
    return model, directory


def with_no_steps_to_speak_of(config: RunConfig, **changes: object) -> RunConfig:
    """A step that leaves the weights as they are."""
    still = {"steps": 1, "lr": 0.0, "min_lr": 0.0, "weight_decay": 0.0}
    return updated(config, still | changes, where="test")


def test_a_run_starts_from_the_weights_of_a_hugging_face_directory(
    small_run: RunConfig, theirs: tuple[GPT2LMHeadModel, Path]
) -> None:
    model, directory = theirs
    source = checkpoint.open_model(directory)
    config = dataclasses.replace(small_run, model=source.config)
    outcome = train(with_no_steps_to_speak_of(config, init=str(directory)))
    ours, tokenizer = checkpoint.load_model(outcome.run)
    tokens = torch.randint(257, (2, 48))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), model(tokens).logits, rtol=1e-4, atol=1e-5)
    assert tokenizer.name == "byte"


def test_a_shorter_context_starts_with_the_first_positions(
    small_run: RunConfig, theirs: tuple[GPT2LMHeadModel, Path]
) -> None:
    model, directory = theirs
    shape = dataclasses.replace(checkpoint.open_model(directory).config, context_length=8, dropout=0.1)
    outcome = train(with_no_steps_to_speak_of(dataclasses.replace(small_run, model=shape), init=str(directory)))
    ours, _ = checkpoint.load_model(outcome.run)
    assert torch.equal(ours.position_embedding.get_parameter("weight"), model.transformer.wpe.weight[:8])


def test_a_run_that_was_begun_from_a_model_continues_without_its_weights(
    small_run: RunConfig, theirs: tuple[GPT2LMHeadModel, Path]
) -> None:
    _, directory = theirs
    config = dataclasses.replace(small_run, model=checkpoint.open_model(directory).config)
    config = updated(config, {"init": str(directory), "steps": 4, "save_every": 2, "eval_every": 2}, where="test")
    train(config)
    (directory / "model.safetensors").unlink()
    assert train(updated(config, {"steps": 6}, where="test")).step == 6


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "layers": ({"n_layer": 2}, r"has n_layer = 1 \(here 2\)"),
    "several": ({"n_layer": 2, "n_embd": 32}, r"n_layer = 1 \(here 2\), n_embd = 16 \(here 32\)"),
    "longer context": ({"context_length": 64}, r"context_length = 48 \(here 64\)"),
    "the mlp": ({"mlp": "relu2"}, r"mlp = gelu \(here relu2\)"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_another_shape_is_refused_before_data_is_prepared(
    small_run: RunConfig,
    theirs: tuple[GPT2LMHeadModel, Path],
    tmp_path: Path,
    changes: dict[str, object],
    message: str,
) -> None:
    _, directory = theirs
    config = dataclasses.replace(small_run, model=checkpoint.open_model(directory).config)
    config = updated(config, {"init": str(directory), "data": str(tmp_path / "none"), **changes}, where="test")
    with pytest.raises(CheckpointError, match=message):
        train(config)


def test_a_directory_that_lacks_a_tensor_is_refused_before_data_is_prepared(
    small_run: RunConfig, theirs: tuple[GPT2LMHeadModel, Path], tmp_path: Path
) -> None:
    _, directory = theirs
    (directory / "model.safetensors").unlink()
    config = dataclasses.replace(small_run, model=checkpoint.open_model(directory).config)
    with pytest.raises(CheckpointError, match="no weights there"):
        train(updated(config, {"init": str(directory), "data": str(tmp_path / "none")}, where="test"))


def test_data_of_another_tokenizer_is_refused_with_both_fingerprints(
    small_run: RunConfig, theirs: tuple[GPT2LMHeadModel, Path], tmp_path: Path
) -> None:
    _, directory = theirs
    tokenizer = train_tokenizer("bpe", ["the cat sat on the mat " * 9] * 9, 260)
    (tmp_path / "bpe.json").write_text(tokenizer.to_json())
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(110):
        (texts / f"{number}.txt").write_text(f"the cat {number} sat on the mat " * 5)
    settings = updated(
        small_run,
        {"path": str(texts), "tokenizer": str(tmp_path / "bpe.json"), "init": str(directory)},
        where="test",
    )
    prepare(settings.data, vocab_size=260, out=tmp_path / "data")
    config = dataclasses.replace(settings, model=checkpoint.open_model(directory).config)
    with pytest.raises(DataError) as raised:
        train(updated(config, {"data": str(tmp_path / "data")}, where="test"))
    byte = load_tokenizer("byte").fingerprint
    assert tokenizer.fingerprint[:12] in str(raised.value)
    assert byte[:12] in str(raised.value)


def test_the_data_is_cut_by_the_tokenizer_of_the_source(
    small_run: RunConfig, theirs: tuple[GPT2LMHeadModel, Path]
) -> None:
    _, directory = theirs
    config = updated(small_run, {"init": str(directory), "tokenizer": "gpt2"}, where="test")
    settings = data_settings(config, starting_point(config))
    assert load_tokenizer(settings.tokenizer).name == "byte"


def test_data_that_is_prepared_under_gpt2s_name_is_used_for_gpt2s_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = updated(RunConfig(), {"init": "openai-community/gpt2", "tokenizer": "byte"}, where="test")
    assert data_settings(config, starting_point(config)).tokenizer == "gpt2"


def test_a_source_without_a_tokenizer_is_refused_before_data_is_prepared(
    small_run: RunConfig, theirs: tuple[GPT2LMHeadModel, Path]
) -> None:
    _, directory = theirs
    (directory / "tokenizer.json").unlink()
    config = dataclasses.replace(small_run, model=checkpoint.open_model(directory).config)
    with pytest.raises(DataError, match=r"put its tokenizer\.json beside the weights"):
        train(updated(config, {"init": str(directory)}, where="test"))


def settings_of(line: str) -> tuple[ModelConfig, dict[str, str]]:
    settings = load_settings(line.split())
    return settings.config.model, settings.origins


def test_on_the_command_line_the_shape_is_that_of_the_model_to_start_from() -> None:
    for name, size in SIZES.items():
        model, origins = settings_of(f"gpt2-124m --init openai-community/{name}")
        assert model == dataclasses.replace(size, dropout=model.dropout)
        assert (origins.get("n_layer") == f"init openai-community/{name}") == (name != "gpt2")


def test_it_replaces_the_shape_of_a_recipe_but_not_its_dropout_and_shorter_context() -> None:
    model, origins = settings_of("shakespeare --init openai-community/gpt2")
    assert (model.n_layer, model.n_head, model.n_embd, model.bias) == (12, 12, 768, True)
    assert (model.context_length, model.dropout) == (256, 0.3)
    assert origins["n_embd"] == "init openai-community/gpt2"
    assert origins["dropout"] == "recipe shakespeare"


def test_flags_that_do_not_change_the_weights_are_followed() -> None:
    line = (
        "shakespeare --init openai-community/gpt2 --context-length 64 --dropout 0.1 --attention explicit --n-layer 12"
    )
    model, _ = settings_of(line)
    assert (model.context_length, model.dropout, model.attention, model.n_layer) == (64, 0.1, "explicit", 12)


def test_attention_is_that_of_the_recipe_or_else_of_the_source(tmp_path: Path, small_run: RunConfig) -> None:
    config = updated(small_run, {"attention": "explicit", "steps": 2, "eval_every": 2}, where="test")
    run = train(config).run
    data = f"--data {small_run.data.data}"
    assert settings_of(f"shakespeare-char --init {run} {data}")[0].attention == "explicit"
    assert settings_of(f"shakespeare-char --init {run} {data} --attention softmax")[0].attention == "softmax"
    assert settings_of(f"python --init {run} {data}")[0].attention == "explicit"


WRONG = {
    "--n-layer 4": r"--n-layer 4: gpt2 has 12; leave it out",
    "--context-length 2048": r"--context-length 2048: gpt2 has 1024",
    "--no-bias": r"--bias False: gpt2 has True",
    "--tokenizer byte": r"--tokenizer 'byte': a run that starts from gpt2 keeps its tokenizer",
}


@pytest.mark.parametrize(("flags", "message"), WRONG.items())
def test_a_flag_that_contradicts_the_weights_is_refused(flags: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(f"shakespeare --init openai-community/gpt2 {flags}")


def test_an_empty_model_takes_memory_but_no_random_numbers() -> None:
    from quillgpt.pretrained.source import empty_model

    config = ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=64)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = empty_model(config, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    drawn = GPT(config)
    assert {name: x.shape for name, x in model.state_dict().items()} == {
        name: x.shape for name, x in drawn.state_dict().items()
    }
    assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in model.parameters())
