"""`--init`: the source gives weights, shape and tokenizer; what does not fit is refused before anything is made."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import quillgpt
from quillgpt import checkpoint
from quillgpt.checkpoint.init_from import data_settings, init_source
from quillgpt.cli.arguments import load_settings
from quillgpt.config import DataConfig, ModelConfig, RunConfig
from quillgpt.data import load_data_tokenizer
from quillgpt.data.prepare import prepare
from quillgpt.errors import CheckpointError, ConfigError, DataError
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import SIZES
from quillgpt.pretrained.source import empty_model
from quillgpt.recipes import recipe_config
from quillgpt.tokenizer import load_tokenizer
from quillgpt.training.loop import train
from small_runs import changed, newest

LORA = {"lora_rank": 4, "lora_alpha": 8.0}
STILL = {"steps": 1, "lr": 0.0, "min_lr": 0.0, "weight_decay": 0.0}
"""a step that changes nothing"""


# A run of ours as the source


def test_a_run_is_continued_when_its_source_is_gone(fine_tuning: RunConfig, prepared: Path) -> None:
    train(changed(fine_tuning, steps=5))
    shutil.rmtree("runs/base")
    train(fine_tuning)
    assert newest(fine_tuning).step == 10
    flags = f"debug --init runs/base --out runs/fine --data {prepared}"
    assert load_settings(flags.split()).config.model == replace(fine_tuning.model, dropout=0.0)


def test_a_shorter_context_sees_the_first_positions(fine_tuning: RunConfig) -> None:
    train(changed(fine_tuning, init="scratch", position="rotary", out="runs/rotary", **STILL))
    tokens = torch.randint(257, (2, 12), generator=torch.Generator().manual_seed(0))
    for position, source in {"learned": "runs/base", "rotary": "runs/rotary"}.items():
        out = f"runs/short-{position}"
        train(changed(fine_tuning, init=source, position=position, context_length=12, out=out, **STILL))
        long, short = (checkpoint.load_model(run)[0] for run in (source, out))
        assert short.config.context_length == 12
        assert torch.equal(long(tokens), short(tokens)), position
        if position == "learned":
            assert torch.equal(short.position_embedding.weight, long.position_embedding.weight[:12])


def test_a_longer_context_is_for_rotary_positions_only(fine_tuning: RunConfig, prepared: Path) -> None:
    with pytest.raises(CheckpointError, match=r"context_length = 32 \(here 64\)"):
        train(changed(fine_tuning, context_length=64))
    flags = f"finetune-shakespeare --data {prepared} --context-length 64 --init"
    with pytest.raises(ConfigError, match=r"--context-length 64: runs/base/.* has 32"):
        load_settings([*flags.split(), "runs/base"])
    train(changed(fine_tuning, init="scratch", position="rotary", out="runs/rotary", **STILL))
    longer = load_settings([*flags.split(), "runs/rotary"]).config
    assert longer.model.context_length == 64
    train(changed(longer, steps=1, batch_size=1, gradient_accumulation_steps=1, threads=1, out="runs/longer"))
    assert checkpoint.load_model("runs/longer")[0].config.context_length == 64


def test_the_sources_shape_wins_over_the_recipe_in_python_and_on_the_command_line(here: Path, prepared: Path) -> None:
    by_flags = load_settings(["shakespeare-char", "--init", "runs/base", f"--data={prepared}", "--context-length=16"])
    in_python = quillgpt.load_recipe("shakespeare-char", init="runs/base", data=str(prepared), context_length=16)
    assert by_flags.config == in_python
    shape = in_python.model
    assert (shape.n_layer, shape.n_embd, shape.bias, shape.context_length, shape.vocab_size) == (2, 32, True, 16, 257)
    assert shape.dropout == 0.2  # the recipe's, because it belongs to training
    with pytest.raises(ConfigError, match=r"--n-layer 3: runs/base/checkpoints/step-000020 has 2; leave it out"):
        quillgpt.load_recipe("shakespeare-char", init="runs/base", n_layer=3)


@pytest.fixture
def in_characters(here: Path) -> str:
    """Data of another tokenizer."""
    Path("text.txt").write_text("to be or not to be\n" * 200)
    settings = DataConfig(source="text", path="text.txt", tokenizer="character")
    prepare(settings, vocab_size=0, out=Path("data/characters"))
    return "data/characters"


def test_data_of_another_tokenizer_is_refused_naming_both(fine_tuning: RunConfig, in_characters: str) -> None:
    tokenizers = {"character": load_data_tokenizer(Path(in_characters)), "byte": load_tokenizer("byte")}
    prints = {name: tokenizer.fingerprint[:12] for name, tokenizer in tokenizers.items()}
    for settings in ({}, LORA):
        with pytest.raises(DataError) as raised:
            train(changed(fine_tuning, data=in_characters, **settings))
        parts = [f"{name} of 257 tokens \\({prints[name]}\\)" for name in ("character", "byte")]
        pattern = f"data/characters .*tokenizer {parts[0]}.* runs/base/checkpoints/step-.*tokenizer {parts[1]}"
        assert re.match(pattern, str(raised.value))
        assert not list(Path("runs/fine/checkpoints").iterdir())


def test_another_tokenizer_than_the_sources_is_refused_and_its_own_may_be_named(here: Path, prepared: Path) -> None:
    words = f"debug --init runs/base --data {prepared} --tokenizer".split()
    assert load_settings([*words, "byte"]).config.data.tokenizer == "byte"
    for other in ("character", "gpt2"):
        with pytest.raises(ConfigError, match=rf"--tokenizer '{other}': .*runs/base/\S+ keeps its tokenizer, byte"):
            load_settings([*words, other])


def test_text_is_prepared_once_for_each_tokenizer(fine_tuning: RunConfig, in_characters: str) -> None:
    own = changed(fine_tuning, data="auto", path="text.txt", **STILL)
    train(own)
    shutil.copytree("runs/base", "elsewhere")
    train(changed(own, init="elsewhere", out="runs/other"))
    train(changed(own, steps=2))
    (manifest,) = Path("data").glob("text-*/manifest.json")
    assert json.loads(manifest.read_text())["tokenizer"]["name"] == "byte"
    settings = {"tokenizer": "bpe", "vocab_size": 260, "eval_tokens": 100}  # prepared for a recipe, and used again
    first = changed(own, init="scratch", **settings, out="runs/bpe")
    train(first)
    second = changed(first, init="runs/bpe", out="runs/tuned")
    train(second)
    shutil.rmtree("runs/bpe")
    train(changed(second, steps=2))
    assert sorted(path.name[:9] for path in Path("data").glob("text-*")) == ["text-bpe2", manifest.parent.name[:9]]


def test_the_recipe_and_nanogpts_names(here: Path, prepared: Path) -> None:
    config = load_settings(["config/finetune_shakespeare.py", "--init", "runs/base", f"--data={prepared}"]).config
    assert config.train.out == "runs/finetune-shakespeare"
    assert (config.optim.schedule, config.optim.lr) == ("constant", 3e-5)
    outcome = train(changed(config, steps=2, gradient_accumulation_steps=2, eval_tokens=500, threads=1, dtype="fp32"))
    assert outcome.step == 2
    assert isinstance(checkpoint.load_model(outcome.run)[0], GPT)
    for run in ("runs/base", "runs/base/"):
        words = ["train_shakespeare_char", "--init_from=finetune", f"--out_dir={run}", f"--data={prepared}"]
        settings = load_settings(words)
        assert (settings.config.train.init, settings.config.train.out) == ("runs/base", "runs/base-finetuned")
        assert settings.origins["out"] == settings.origins["init"] == "init_from=finetune"
        assert settings.config.model.n_layer == 2
        assert recipe_config("debug", init="finetune", out=run).train.out == "runs/base-finetuned"
        (here / "mine.toml").write_text(f'init_from = "finetune"\nout_dir = "{run}"\ndata = "{prepared}"\n')
        assert load_settings(["mine.toml"]).config.train.init == "runs/base"
    with pytest.raises(ConfigError, match=r"init = finetune: which run\? --out-dir RUN .* RUN-finetuned"):
        load_settings(["debug", "--init_from=finetune"])


# A directory in Hugging Face's format as the source


@pytest.fixture
def theirs(tmp_path: Path) -> tuple[GPT2LMHeadModel, Path]:
    """A directory whose vocabulary is our bytes."""
    torch.manual_seed(5)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 48, "vocab_size": 257}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=256, eos_token_id=256)).eval()
    directory = tmp_path / "theirs"
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(load_tokenizer("byte").to_json())
    return model, directory


@pytest.fixture
def from_theirs(small_run: RunConfig, theirs: tuple[GPT2LMHeadModel, Path]) -> RunConfig:
    """A run that starts from it."""
    model = checkpoint.open_model(theirs[1]).config
    return changed(replace(small_run, model=model), init=str(theirs[1]))


def test_a_run_starts_from_the_weights_of_a_hugging_face_directory_and_continues_without_it(
    from_theirs: RunConfig, theirs: tuple[GPT2LMHeadModel, Path], tmp_path: Path
) -> None:
    model, directory = theirs
    ours, tokenizer = checkpoint.load_model(train(changed(from_theirs, **STILL)).run)
    tokens = torch.randint(257, (2, 48))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), model(tokens).logits, rtol=1e-4, atol=1e-5)
    assert tokenizer.name == "byte"
    short = changed(from_theirs, context_length=8, dropout=0.1, **STILL, out=str(tmp_path / "short"))
    ours, _ = checkpoint.load_model(train(short).run)
    assert torch.equal(ours.position_embedding.get_parameter("weight"), model.transformer.wpe.weight[:8])
    (directory / "model.safetensors").unlink()
    assert train(changed(from_theirs, steps=6)).step == 6


def test_what_does_not_fit_is_refused_before_data_is_prepared(from_theirs: RunConfig, tmp_path: Path) -> None:
    config, directory = changed(from_theirs, data=str(tmp_path / "none")), Path(from_theirs.train.init)
    shapes = {
        r"has n_layer = 1 \(here 2\)": {"n_layer": 2},
        r"n_layer = 1 \(here 2\), n_embd = 16 \(here 32\)": {"n_layer": 2, "n_embd": 32},
        r"context_length = 48 \(here 64\)": {"context_length": 64},
        r"mlp = gelu \(here relu2\)": {"mlp": "relu2"},
    }
    for message, settings in shapes.items():
        with pytest.raises(CheckpointError, match=message):
            train(changed(config, **settings))
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights there"):
        train(config)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        data_settings(config, checkpoint.open_model(directory))


def test_the_data_settings_have_the_tokenizer_of_the_source(
    from_theirs: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its own name if it has one, so that data that is prepared under that name is used."""
    config = changed(from_theirs, tokenizer="gpt2")
    assert load_tokenizer(data_settings(config, init_source(config)).tokenizer).name == "byte"
    monkeypatch.chdir(tmp_path)
    config = changed(RunConfig(), init="openai-community/gpt2", tokenizer="byte")
    assert data_settings(config, init_source(config)).tokenizer == "gpt2"


# The command line


def settings_of(line: str) -> tuple[ModelConfig, dict[str, str]]:
    settings = load_settings(line.split())
    return settings.config.model, settings.origins


def test_on_the_command_line_the_shape_is_that_of_the_source() -> None:
    for name, size in SIZES.items():
        model, origins = settings_of(f"gpt2-124m --init openai-community/{name}")
        assert model == replace(size, dropout=model.dropout)
        assert (origins.get("n_layer") == f"init openai-community/{name}") == (name != "gpt2")


def test_it_replaces_the_shape_of_a_recipe_but_not_what_does_not_change_the_weights() -> None:
    model, origins = settings_of("shakespeare --init openai-community/gpt2")
    assert (model.n_layer, model.n_head, model.n_embd, model.bias) == (12, 12, 768, True)
    assert (model.context_length, model.dropout) == (256, 0.3)
    assert origins["n_embd"] == "init openai-community/gpt2"
    assert origins["dropout"] == "recipe shakespeare"
    flags = "--context-length 64 --dropout 0.1 --attention explicit --n-layer 12"
    model, _ = settings_of(f"shakespeare --init openai-community/gpt2 {flags}")
    assert (model.context_length, model.dropout, model.attention, model.n_layer) == (64, 0.1, "explicit", 12)


def test_attention_is_that_of_the_recipe_or_else_of_the_source(small_run: RunConfig) -> None:
    run = train(changed(small_run, attention="explicit", steps=2, eval_every=2)).run
    data = f"--data {small_run.data.data}"
    assert settings_of(f"shakespeare-char --init {run} {data}")[0].attention == "explicit"
    assert settings_of(f"shakespeare-char --init {run} {data} --attention softmax")[0].attention == "softmax"
    assert settings_of(f"python --init {run} {data}")[0].attention == "explicit"


def test_a_flag_that_contradicts_the_weights_is_refused() -> None:
    wrong = {
        "--n-layer 4": r"--n-layer 4: gpt2 has 12; leave it out",
        "--context-length 2048": r"--context-length 2048: gpt2 has 1024",
        "--no-bias": r"--bias False: gpt2 has True",
        "--tokenizer byte": r"--tokenizer 'byte': .* gpt2 keeps its tokenizer",
    }
    for flags, message in wrong.items():
        with pytest.raises(ConfigError, match=message):
            settings_of(f"shakespeare --init openai-community/gpt2 {flags}")


def test_an_empty_model_takes_memory_but_no_random_numbers() -> None:
    config = ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=64)
    before = torch.get_rng_state()
    model = empty_model(config, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (model, GPT(config))]
    assert shapes[0] == shapes[1]
    assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in model.parameters())
