"""Recipes: each has the settings that its header states; a user's file is read strictly and never executed."""

import math
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from quillgpt.cli.arguments import load_settings
from quillgpt.config import RunConfig, flatten, updated
from quillgpt.errors import ConfigError
from quillgpt.evaluate.loss import PUBLISHED_LOSSES
from quillgpt.model.attention import ATTENTION, find_attention
from quillgpt.model.sizes import PUBLISHED_PARAMETERS, parameter_count
from quillgpt.recipes import read_recipe, read_toml, recipe_config, recipe_names, recipe_path
from quillgpt.recipes.aliases import RECIPES
from quillgpt.run_dir import config_toml

STATED = {
    "debug": "source=python tokenizer=byte steps=200 n_layer=2 compile=off",
    "python": "source=python tokenizer=bpe minutes=2 position=rotary norm=rmsnorm qk_norm=True mlp=relu2 lr=0.0015",
    "modern-python": """source=python tokenizer=bpe minutes=2 optimizer=muon n_layer=4 n_embd=192 vocab_size=1024
        residual=mixed value_embeddings=True logit_softcap=15.0 initialization=zero-output schedule=wsd""",
    "modern-shakespeare-char": """n_layer=2 n_embd=128 context_length=64 optimizer=muon source=shakespeare
        tokenizer=character residual=mixed value_embeddings=True logit_softcap=15.0""",
    "shakespeare-char": """n_layer=6 n_head=6 n_embd=384 context_length=256 dropout=0.2 bias=False
        lr=0.001 min_lr=0.0001 beta2=0.99 warmup_steps=100 steps=5000 batch_size=64 batch_tokens=0 eval_every=250
        source=shakespeare tokenizer=character""",
    "nanogpt-cpu": "mlp=gelu-exact dtype=fp32 position=learned norm=layernorm qk_norm=False tied_head=True",
    "shakespeare": "source=shakespeare tokenizer=gpt2 init=scratch",
    "finetune-shakespeare": """init=gpt2 source=shakespeare tokenizer=gpt2 lr=3e-05 schedule=constant warmup_steps=0
        steps=20 batch_size=1 gradient_accumulation_steps=32 context_length=1024 dropout=0.0 weight_decay=0.1
        lora_rank=0""",
    "eval-gpt2": "init=gpt2 eval_only=True source=openwebtext tokenizer=gpt2 batch_size=8 context_length=1024",
    "gpt2-124m": """n_layer=12 n_head=12 n_embd=768 context_length=1024 dropout=0.0 bias=False
        lr=0.0006 min_lr=6e-05 warmup_steps=2000 weight_decay=0.1 beta1=0.9 beta2=0.95 gradient_clip=1.0
        schedule=cosine decay_steps=0 steps=600000 batch_size=12 batch_tokens=491520
        source=openwebtext tokenizer=gpt2""",
    "modern-124m": """n_layer=12 n_head=6 n_embd=768 context_length=1024 optimizer=muon lr=0.025 embedding_lr=0.7
        head_lr=0.004 scalar_lr=0.015 weight_decay=0.05 beta1=0.8 beta2=0.95 eps=1e-10 momentum=0.95 schedule=wsd
        decay_fraction=0.7 min_lr=0.0 warmup_steps=0 steps=3250 batch_tokens=524288 logit_softcap=15.0 tied_head=False
        mlp=relu2 norm=rmsnorm position=rotary qk_norm=True bias=False source=fineweb-edu value_embeddings=False""",
    "one-layer": "n_layer=1 n_head=1 source=python tokenizer=byte attention=softmax",
}
"""settings that the header of the recipe, or its source, states"""
CHANGED = {
    "eval-gpt2-medium": "init=gpt2-medium",
    "eval-gpt2-large": "init=gpt2-large",
    "eval-gpt2-xl": "init=gpt2-xl",
    "fineweb-edu-124m": """bias=True source=fineweb-edu warmup_steps=715 steps=19073 batch_tokens=524288 batch_size=16
        eval_every=250""",
    "fineweb-edu-124m-3x": "lr=0.0018 min_lr=0.00018",
    "gaussian-124m": "attention=gaussian",
    "gaussian-normalized-python": "attention=gaussian-normalized qk_norm=False",
    "gaussian-poly-124m": "attention=gaussian-poly-8 qk_norm=True",
    "gaussian-poly-python": "attention=gaussian-poly-8",
    "gaussian-python": "attention=gaussian",
    "gpt2-350m": "n_layer=24 n_head=16 n_embd=1024 lr=0.0003 min_lr=3e-05 batch_size=4",
    "gpt2-774m": "n_layer=36 n_head=20 n_embd=1280 lr=0.00025 min_lr=2.5e-05 batch_size=4",
    "gpt2-1558m": "n_layer=48 n_head=25 n_embd=1600 lr=0.0002 min_lr=2e-05 batch_size=4",
    "gpt2-paper": """bias=True dropout=0.1 lr=0.00025 min_lr=0.0 weight_decay=0.01 beta2=0.999 batch_tokens=524288
        batch_size=16""",
    "modern-124m-1gpu": "batch_size=16",
    "pointwise-124m": "attention=pointwise-relu",
    "pointwise-python": "attention=pointwise-relu",
    "polynomial": "attention=gaussian-poly-8 mlp=square qk_norm=False",
    "power-python": "attention=power",
    "quill-python": "n_head=5 n_embd=160 steps=2400 minutes=0",
}
"""everything that the other recipes change in those they extend"""
NANOGPT_CPU = """config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1
    --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000
    --dropout=0.0"""
"""the words after `python train.py` in nanoGPT's README"""
PUBLISHED = {"gpt2-124m": "gpt2", "gpt2-350m": "gpt2-medium", "gpt2-774m": "gpt2-large", "gpt2-1558m": "gpt2-xl"}


def header(name: str) -> str:
    """The comment that the recipe begins with."""
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    first_other = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:first_other])


def commands(name: str) -> list[list[str]]:
    """The arguments of `quill train` in the recipe's header."""
    text = header(name).replace("\\\n", " ")
    return [shlex.split(line.split("train ", 1)[1].split("    ")[0]) for line in text.splitlines() if line[:2] == "  "]


def recipe(folder: Path, text: str, name: str = "mine.toml") -> str:
    """Write a recipe file in the folder and return its path."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def refusal(name_or_path: str) -> str:
    """The one line with which a recipe is refused."""
    with pytest.raises(ConfigError) as caught:
        recipe_config(name_or_path)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_recipe_has_the_settings_that_its_header_states_and_changes_nothing_else() -> None:
    assert recipe_names() == sorted([*STATED, *CHANGED])
    wrong = {}
    for name in recipe_names():
        settings = flatten(recipe_config(name))
        stated = dict(word.split("=") for word in (STATED | CHANGED)[name].split())
        wrong[name] = {setting: settings[setting] for setting in stated if str(settings[setting]) != stated[setting]}
        if name in CHANGED:
            base = flatten(recipe_config(read_toml(recipe_path(name))["extends"]))
            changed = {setting for setting in base if settings[setting] != base[setting]} - {"out"}
            wrong[name] |= {setting: settings[setting] for setting in changed ^ stated.keys()}
    assert not any(wrong.values()), wrong


def test_a_header_has_name_commands_that_work_and_what_to_expect() -> None:
    for name in recipe_names():
        assert header(name).startswith(f"{name}: ")
        assert commands(name)[0] == [name]
        assert re.search(r"\d|Not run here|from scratch", header(name)), name
        assert all(load_settings(command).recipe == command[0] for command in commands(name))
        if name.startswith("eval-"):
            losses = PUBLISHED_LOSSES[recipe_config(name).train.init]
            assert f"training loss {losses['train']}, validation loss {losses['val']}" in header(name)


def test_nanogpt_cpu_is_the_command_of_nanogpts_readme() -> None:
    """Except for what is evaluated and logged; nanoGPT computes in fp32 on a CPU, and its GELU is exact."""
    ours, theirs = flatten(recipe_config("nanogpt-cpu")), flatten(load_settings(NANOGPT_CPU.split()).config)
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing == {"out", "mlp", "dtype", "eval_iters", "log_every", "gradient_accumulation_steps"}


def test_the_four_sizes_have_the_published_number_of_parameters() -> None:
    for name, published in PUBLISHED.items():
        assert parameter_count(replace(recipe_config(name).model, bias=True)) == PUBLISHED_PARAMETERS[published]


def test_every_family_of_attentions_has_a_recipe_that_runs_on_a_cpu() -> None:
    has_recipe = {recipe_config(name).model.attention for name in recipe_names() if name.endswith("python")}
    families = {attention.partition("-")[0] for attention in has_recipe}
    assert families == {attention.partition("-")[0] for attention in ATTENTION}


def test_qk_norm_keeps_the_polynomial_at_most_1() -> None:
    """Its argument is at most 2 sqrt(D), and from 2N on it exceeds 1."""
    for name in ("gaussian-poly-124m", "gaussian-poly-python"):
        model = recipe_config(name).model
        assert model.qk_norm
        assert 2 * math.sqrt(model.n_embd // model.n_head) <= 2 * find_attention(model.attention).degree


def test_nanogpts_configuration_files_are_recipes() -> None:
    for theirs, ours in RECIPES.items():
        for form in ("config/{}.py", "{}.py", "{}", "config/{}"):
            assert recipe_path(form.format(theirs)) == recipe_path(ours)


def test_the_run_directory_has_the_recipes_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipe_config("debug").train.out == "runs/debug"
    assert recipe_config(recipe(tmp_path, "", "letters.toml")).train.out == "runs/letters"
    assert recipe_config(recipe(tmp_path, 'out = "there"')).train.out == "there"
    run = tmp_path / "first"
    recipe(run, "steps = 7", "config.toml")
    monkeypatch.chdir(run)
    for name in (str(run), str(run / "config.toml"), "config.toml", "."):
        config = recipe_config(name)
        assert (config.train.steps, config.train.out) == (7, "runs/first-again")


def test_load_recipe_accepts_changes() -> None:
    config = recipe_config("python", steps=5, n_layer=2, compile=True)
    assert (config.train.steps, config.train.minutes, config.model.n_layer, config.train.compile) == (5, 0, 2, "on")
    with pytest.raises(ConfigError, match=r"unknown setting 'step'.*did you mean steps"):
        recipe_config("python", step=5)


def test_tables_only_group_and_an_empty_file_has_the_defaults(tmp_path: Path) -> None:
    flat = recipe(tmp_path, "n_layer = 3\nlr = 1\nbias = false\n")
    grouped = recipe(tmp_path, "[model]\nn_layer = 3\nbias = false\n[optim]\nlr = 1.0\n", "grouped.toml")
    expected = updated(RunConfig(), {"n_layer": 3, "lr": 1.0, "bias": False, "out": "runs/mine"}, where="test")
    assert recipe_config(flat) == expected
    assert flatten(recipe_config(grouped)) == flatten(expected) | {"out": "runs/grouped"}
    assert recipe_config(recipe(tmp_path, "")) == updated(RunConfig(), {"out": "runs/mine"}, where="test")


def test_nanogpts_names_and_values_are_accepted(tmp_path: Path) -> None:
    theirs = """block_size = 64, learning_rate = 1e-2, max_iters = 9, dtype = "float16", dataset = "shakespeare_char",
        init_from = "resume", decay_lr = false, wandb_log = true, compile = false, always_save_checkpoint = true"""
    ours = """context_length = 64, lr = 1e-2, steps = 9, dtype = "fp16", source = "shakespeare",
        tokenizer = "character", schedule = "constant", warmup_steps = 0, track = "wandb", compile = "off" """
    first, second = (recipe(tmp_path / str(i), text.replace(",", "\n")) for i, text in enumerate((theirs, ours)))
    assert recipe_config(first) == recipe_config(second)


def test_extends_starts_from_another_recipe_or_a_file_in_the_same_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, origins = read_recipe(recipe(tmp_path, 'extends = "debug"\nsteps = 5\n'))
    assert (settings["steps"], origins["steps"]) == (5, "recipe mine")
    assert (settings["n_layer"], origins["n_layer"]) == (2, "recipe debug")
    shelf = tmp_path / "shelf"
    recipe(shelf, "n_layer = 3\nn_head = 3\n", "base.toml")
    recipe(shelf / "run", "n_layer = 3\nn_head = 3\n", "config.toml")
    monkeypatch.chdir(tmp_path)
    for base in ("base.toml", "./base.toml", "../shelf/base.toml", "run"):
        model = recipe_config(recipe(shelf, f'extends = "{base}"\nn_head = 2\n')).model
        assert (model.n_layer, model.n_head) == (3, 2)


def test_an_alternative_setting_replaces_that_of_the_base_but_a_saved_config_keeps_both(tmp_path: Path) -> None:
    recipe(tmp_path, "batch_tokens = 4096\nminutes = 3\n", "base.toml")
    train = recipe_config(recipe(tmp_path, 'extends = "base.toml"\ngradient_accumulation_steps = 2\nsteps = 4\n')).train
    assert (train.batch_tokens, train.gradient_accumulation_steps, train.minutes, train.steps) == (0, 2, 0, 4)
    config = recipe_config("python")
    assert recipe_config(recipe(tmp_path, config_toml(config))).train.minutes == config.train.minutes == 2


REFUSED = {
    "n_layer = 0": "invalid n_layer: 0",
    "n_layer = true": "invalid n_layer: True (must be an integer",
    "n_layer = 1.0": "invalid n_layer: 1.0 (must be an integer",
    'n_layer = "3"': "invalid n_layer: '3' (must be an integer",
    "lr = nan": "invalid lr: nan",
    "lr = 1e999": "invalid lr: inf",
    f"steps = {10**100}": "invalid steps: a number of 333 bits",
    "n_layer = [3]": "invalid n_layer: [3] (must be an integer",
    "n_layer = {a = 3}": "unknown table [n_layer]",
    "out = 2020-01-01": "invalid out: datetime.date(2020, 1, 1) (must be a string",
    "n_layers = 3": "unknown setting 'n_layers' (did you mean n_layer?)",
    "[model]\nn_layers = 3": "unknown setting 'n_layers' (did you mean n_layer?)",
    "[modle]\nn_layer = 3": "unknown table [modle] (did you mean model?); tables are model, data, optim, train",
    "[model.deep]\nn_layer = 3": "unknown setting 'deep'",
    "model = 3": "unknown setting 'model'",
    "lr = 1e-3\nlearning_rate = 1e-4": "lr is set twice, once as learning_rate",
    "lr = 1e-3\n[optim]\nlr = 1e-4": "lr is set twice",
    "[model]\nlr = 1e-3\n[optim]\nlr = 1e-4": "lr is set twice",
    'decay_lr = "maybe"': "invalid decay_lr: 'maybe' (must be true or false",
    "extends = 3": "invalid extends: 3 (must be the name of a recipe)",
    'extends = "nowhere"': "extends: no recipe 'nowhere'",
    'extends = "nowhere.toml"': "nowhere.toml: no such recipe file",
    'extends = ""': "no recipe ''",
    'extends = "a\\u0000b"': "no recipe 'a\\x00b'",
    'extends = "debgu"': "no recipe 'debgu' (did you mean debug?)",
    'extends = "./mine.toml"': "which extends it; remove one `extends`",
    'extends = "other.toml"': "which extends it; remove one `extends`",  # other.toml extends mine.toml
    "n_layer = ": "not a TOML file",
    "import os": "not a TOML file",
    "x = " + "[" * 100_000: "not a TOML file",
    "x = " + "1" * 5000: "not a TOML file",
    "#" * (1 << 21): "too large for a file of this kind",
}


def test_a_wrong_file_is_refused_in_one_line_that_names_it(tmp_path: Path) -> None:
    recipe(tmp_path, 'extends = "mine.toml"', "other.toml")
    for text, expected in REFUSED.items():
        message = refusal(recipe(tmp_path, text))
        assert expected in message
        assert str(tmp_path) in message
        assert len(message) < 800


def test_what_is_not_a_readable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "link.toml").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    (tmp_path / "bytes.toml").write_bytes(b"out = '\xff'")
    for name, words in {
        "folder.toml": "a directory, expected a regular file",
        "pipe.toml": "a named pipe",
        "/dev/zero": "no recipe",
        "link.toml": "no such recipe file",
        "missing.toml": "no such recipe file",
        "loop.toml": "cannot be read: Too many levels of symbolic links",
        "bytes.toml": "not UTF-8 at byte 7",
        ".": "no recipe",
        "x" * 5000: "no recipe",
        "x" * 5000 + ".toml": "cannot be read: File name too long",
    }.items():
        assert words in refusal(str(tmp_path / name)), name

    def denied(*arguments: object, **options: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = recipe(tmp_path, "")
    monkeypatch.setattr(os, "open", denied)
    assert refusal(path) == f"{path}: cannot be read: Permission denied; check its permissions"


def test_code_in_a_recipe_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config").mkdir()
    for name in ("mine.toml", "mine.py", "config/mine.py"):
        Path(name).write_text("open('canary', 'w').close()\nn_layer = 3\n")
        refusal(name)
        assert not Path("canary").exists()


def test_an_unknown_recipe_is_refused_with_the_nearest_and_all() -> None:
    for wrong, right in (("debgu", "debug"), ("gpt2-124", "gpt2-124m"), ("shakespeare_char", "shakespeare-char")):
        message = refusal(wrong)
        assert f"(did you mean {right}?)" in message
        assert all(name in message for name in recipe_names())
