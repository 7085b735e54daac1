"""Recipes: each page of the lab book says what it does and does it; a user's file is read strictly and runs nothing."""

import math
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from quillgpt import recipes
from quillgpt.cli.settings import load_settings
from quillgpt.config import RunConfig, flatten, updated
from quillgpt.errors import ConfigError
from quillgpt.evaluate.published_losses import PUBLISHED_LOSSES
from quillgpt.model.attention import ATTENTION
from quillgpt.model.attention.gaussian_poly import power_of
from quillgpt.model.sizes import PUBLISHED_PARAMETERS, parameter_count
from quillgpt.recipes import load_recipe, read_recipe, recipe_names, recipe_path
from quillgpt.recipes.aliases import RECIPES
from quillgpt.run_dir import config_toml

SAID = {
    "debug": "source=python tokenizer=byte steps=200 n_layer=2 compile=off",
    "python": "source=python tokenizer=bpe minutes=2 position=rotary norm=rmsnorm qk_norm=True mlp=relu2",
    "modern-python": """source=python tokenizer=bpe minutes=2 optimizer=muon n_layer=4 n_embd=192 vocab_size=1024
        residual=mixed value_embeddings=True logit_softcap=15.0 initialization=zero-output schedule=wsd""",
    "quill-python": "n_layer=4 n_embd=160 vocab_size=1024 optimizer=muon source=python",
    "modern-shakespeare-char": """n_layer=2 n_embd=128 context_length=64 optimizer=muon source=shakespeare
        tokenizer=character residual=mixed value_embeddings=True logit_softcap=15.0""",
    "polynomial": "attention=gaussian-poly-8 mlp=square qk_norm=False norm=rmsnorm position=rotary minutes=2",
    "shakespeare-char": """n_layer=6 n_head=6 n_embd=384 context_length=256 dropout=0.2 bias=False
        lr=0.001 min_lr=0.0001 beta2=0.99 warmup_steps=100 steps=5000 batch_size=64 batch_tokens=0 eval_every=250
        source=shakespeare tokenizer=character""",
    "nanogpt-cpu": """n_layer=4 n_head=4 n_embd=128 context_length=64 batch_size=12 steps=2000 bias=False
        decay_steps=2000
        dropout=0.0 lr=0.001 min_lr=0.0001 warmup_steps=100 beta1=0.9 beta2=0.99 weight_decay=0.1 gradient_clip=1.0
        schedule=cosine gradient_accumulation_steps=1 source=shakespeare tokenizer=character device=cpu dtype=fp32
        compile=off position=learned norm=layernorm mlp=gelu-exact qk_norm=False tied_head=True
        optimizer=adamw""",
    "shakespeare": "source=shakespeare tokenizer=gpt2 init=scratch",
    "finetune-shakespeare": """init=gpt2 source=shakespeare tokenizer=gpt2 lr=3e-05 schedule=constant warmup_steps=0
        steps=20 batch_size=1 gradient_accumulation_steps=32 context_length=1024 dropout=0.0 weight_decay=0.1
        lora_rank=0""",
    "eval-gpt2": "init=gpt2 eval_only=True source=openwebtext tokenizer=gpt2 batch_size=8 context_length=1024",
    "eval-gpt2-medium": "init=gpt2-medium eval_only=True source=openwebtext tokenizer=gpt2 batch_size=8",
    "eval-gpt2-large": "init=gpt2-large eval_only=True source=openwebtext tokenizer=gpt2 batch_size=8",
    "eval-gpt2-xl": "init=gpt2-xl eval_only=True source=openwebtext tokenizer=gpt2 batch_size=8",
    "gpt2-124m": """n_layer=12 n_head=12 n_embd=768 context_length=1024 dropout=0.0 bias=False
        lr=0.0006 min_lr=6e-05 warmup_steps=2000 weight_decay=0.1 beta1=0.9 beta2=0.95 gradient_clip=1.0
        schedule=cosine decay_steps=0 steps=600000 batch_size=12 batch_tokens=491520
        source=openwebtext tokenizer=gpt2""",
    "gpt2-350m": "n_layer=24 n_head=16 n_embd=1024 lr=0.0003 min_lr=3e-05 steps=600000 batch_tokens=491520",
    "gpt2-774m": "n_layer=36 n_head=20 n_embd=1280 lr=0.00025 min_lr=2.5e-05 steps=600000 batch_tokens=491520",
    "gpt2-1558m": "n_layer=48 n_head=25 n_embd=1600 lr=0.0002 min_lr=2e-05 steps=600000 batch_tokens=491520",
    "gpt2-paper": """n_layer=12 n_head=12 n_embd=768 bias=True lr=0.00025 dropout=0.1 weight_decay=0.01
        context_length=1024 batch_tokens=524288""",
    "fineweb-edu-124m": """n_layer=12 n_head=12 n_embd=768 context_length=1024 dropout=0.0 bias=True
        lr=0.0006 min_lr=6e-05 beta1=0.9 beta2=0.95 weight_decay=0.1 gradient_clip=1.0 batch_tokens=524288
        source=fineweb-edu subset=sample-10BT""",
    "modern-124m": """n_layer=12 n_head=6 n_embd=768 context_length=1024 optimizer=muon lr=0.025 embedding_lr=0.7
        head_lr=0.004 scalar_lr=0.015 weight_decay=0.05 beta1=0.8 beta2=0.95 eps=1e-10 momentum=0.95 schedule=wsd
        decay_fraction=0.7 min_lr=0.0 warmup_steps=0 steps=3250 batch_tokens=524288 logit_softcap=15.0 tied_head=False
        mlp=relu2 norm=rmsnorm position=rotary qk_norm=True bias=False source=fineweb-edu value_embeddings=False""",
    "modern-124m-1gpu": "batch_size=16 batch_tokens=524288 steps=3250 lr=0.025",
    "fineweb-edu-124m-3x": "lr=0.0018 min_lr=0.00018 batch_tokens=524288 source=fineweb-edu",
    "one-layer": "n_layer=1 n_head=1 source=python tokenizer=byte attention=softmax",
    "gaussian-124m": "attention=gaussian n_layer=12 n_head=12 n_embd=768 lr=0.0006 steps=600000 batch_tokens=491520",
    "gaussian-poly-124m": "attention=gaussian-poly-8 qk_norm=True n_layer=12 lr=0.0006 batch_tokens=491520",
    "pointwise-124m": """attention=pointwise-relu pointwise_length_power=1.0 n_layer=12 n_head=12 n_embd=768
        context_length=1024 lr=0.0006 batch_tokens=491520 batch_size=12""",
    "gaussian-python": "attention=gaussian minutes=2 source=python tokenizer=bpe lr=0.0015",
    "gaussian-normalized-python": "attention=gaussian-normalized qk_norm=False minutes=2 source=python lr=0.0015",
    "gaussian-poly-python": "attention=gaussian-poly-8 qk_norm=True minutes=2 source=python lr=0.0015",
    "pointwise-python": "attention=pointwise-relu pointwise_length_power=1.0 minutes=2 source=python lr=0.0015",
    "power-python": "attention=power minutes=2 source=python lr=0.0015",
}
"""what the header of the recipe, or its source, says"""

NANOGPT_CPU = """config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1
    --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000
    --dropout=0.0"""
"""the words behind `python train.py` in nanoGPT's README"""

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
    """A recipe file in the folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def refusal(name_or_path: str) -> str:
    """The one line with which a recipe is refused."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(name_or_path)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_every_recipe_is_said() -> None:
    assert recipe_names() == sorted(SAID)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_loads_and_is_what_its_header_says(name: str) -> None:
    settings = flatten(load_recipe(name))
    said = dict(word.split("=") for word in SAID[name].split())
    assert {setting: str(settings[setting]) for setting in said} == said


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_begins_with_its_name_and_its_command(name: str) -> None:
    assert header(name).startswith(f"{name}: ")
    assert commands(name)[0] == [name]
    assert re.search(r"\d|Not run here|from scratch", header(name)), "says nothing to expect"


@pytest.mark.parametrize("command", [words for name in recipe_names() for words in commands(name)], ids=" ".join)
def test_a_command_in_a_header_is_understood(command: list[str]) -> None:
    assert load_settings(command).recipe == command[0]


def test_nanogpt_cpu_is_the_command_of_nanogpts_readme() -> None:
    """But for what it looks at and where it runs: nanoGPT computes in fp32 on a CPU, and its GELU is exact."""
    ours, theirs = flatten(load_recipe("nanogpt-cpu")), flatten(load_settings(NANOGPT_CPU.split()).config)
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing == {"out", "mlp", "dtype", "eval_iters", "log_every", "gradient_accumulation_steps"}


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("eval-")])
def test_an_evaluation_says_the_published_losses(name: str) -> None:
    losses = PUBLISHED_LOSSES[load_recipe(name).train.init]
    assert f"{losses['train']} on the training split, {losses['val']} held out" in header(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_four_sizes_have_the_published_number_of_parameters(name: str) -> None:
    model = replace(load_recipe(name).model, bias=True)
    assert parameter_count(model) == PUBLISHED_PARAMETERS[PUBLISHED[name]]


VARIANTS = {
    "gaussian-124m": {"attention"},
    "gaussian-poly-124m": {"attention", "qk_norm"},
    "pointwise-124m": {"attention"},
    "gaussian-python": {"attention"},
    "gaussian-normalized-python": {"attention", "qk_norm"},
    "gaussian-poly-python": {"attention"},
    "pointwise-python": {"attention"},
    "power-python": {"attention"},
    "modern-124m-1gpu": {"batch_size"},
}
"""what each changes of gpt2-124m, python or modern-124m"""


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_its_base_in_what_it_says_and_nothing_else(name: str) -> None:
    bases = {"modern-124m-1gpu": "modern-124m"}
    base = flatten(load_recipe(bases.get(name, "gpt2-124m" if name.endswith("124m") else "python")))
    ours = flatten(load_recipe(name))
    assert {setting for setting in base if ours[setting] != base[setting]} - {"out"} == VARIANTS[name]


def test_every_family_of_attentions_has_a_recipe_that_runs_here() -> None:
    has_recipe = {load_recipe(name).model.attention for name in recipe_names() if name.endswith("python")}
    families = {attention.partition("-")[0] for attention in has_recipe}
    assert families == {attention.partition("-")[0] for attention in ATTENTION}


@pytest.mark.parametrize("name", ["gaussian-poly-124m", "gaussian-poly-python"])
def test_qk_norm_keeps_the_polynomial_from_growing(name: str) -> None:
    """Its argument is at most 2 sqrt(D), and from 2N on it is above 1."""
    model = load_recipe(name).model
    assert model.qk_norm
    assert 2 * math.sqrt(model.n_embd // model.n_head) <= 2 * power_of(model.attention)


def test_fineweb_edu_warms_up_over_375_million_tokens_and_reads_10_billion() -> None:
    config = load_recipe("fineweb-edu-124m")
    assert round(375e6 / config.train.batch_tokens) == config.optim.warmup_steps
    assert round(10e9 / config.train.batch_tokens) == config.train.steps


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("form", ["config/{}.py", "{}.py", "{}", "config/{}"])
def test_nanogpts_configuration_files_are_recipes(name: str, form: str) -> None:
    assert recipe_path(form.format(name)) == recipe_path(RECIPES[name])


def test_a_recipe_has_a_run_directory_of_its_name(tmp_path: Path) -> None:
    assert load_recipe("debug").train.out == "runs/debug"
    assert load_recipe(recipe(tmp_path, "", "letters.toml")).train.out == "runs/letters"
    assert load_recipe(recipe(tmp_path, 'out = "there"')).train.out == "there"


def test_a_runs_own_config_makes_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "first"
    run.mkdir()
    recipe(run, "steps = 7", "config.toml")
    monkeypatch.chdir(run)
    for name in (str(run), str(run / "config.toml"), "config.toml", "."):
        config = load_recipe(name)
        assert (config.train.steps, config.train.out) == (7, "runs/first-again")


def test_load_recipe_takes_changes() -> None:
    config = load_recipe("python", steps=5, n_layer=2, compile=True)
    assert (config.train.steps, config.train.minutes, config.model.n_layer, config.train.compile) == (5, 0, 2, "on")
    with pytest.raises(ConfigError, match=r"unknown setting 'step'.*did you mean steps"):
        load_recipe("python", step=5)


def test_tables_only_group(tmp_path: Path) -> None:
    flat = recipe(tmp_path, "n_layer = 3\nlr = 1\nbias = false\n")
    grouped = recipe(tmp_path, "[model]\nn_layer = 3\nbias = false\n[optim]\nlr = 1.0\n", "grouped.toml")
    expected = updated(RunConfig(), {"n_layer": 3, "lr": 1.0, "bias": False, "out": "runs/mine"}, where="test")
    assert load_recipe(flat) == expected
    assert flatten(load_recipe(grouped)) == flatten(expected) | {"out": "runs/grouped"}


def test_nanogpts_names_and_values_are_taken(tmp_path: Path) -> None:
    text = """
        block_size = 64
        learning_rate = 1e-2
        max_iters = 9
        dtype = "float16"
        dataset = "shakespeare_char"
        init_from = "resume"
        decay_lr = false
        wandb_log = true
        compile = false
        always_save_checkpoint = true
    """
    meant = """
        context_length = 64
        lr = 1e-2
        steps = 9
        dtype = "fp16"
        source = "shakespeare"
        tokenizer = "character"
        schedule = "constant"
        warmup_steps = 0
        track = "wandb"
        compile = "off"
    """
    assert load_recipe(recipe(tmp_path, text)) == load_recipe(recipe(tmp_path / "ours", meant))


def test_extends_begins_with_another_recipe_and_remembers_who_set_what(tmp_path: Path) -> None:
    settings, origins = read_recipe(recipe(tmp_path, 'extends = "debug"\nsteps = 5\n'))
    assert (settings["steps"], origins["steps"]) == (5, "recipe mine")
    assert (settings["n_layer"], origins["n_layer"]) == (2, "recipe debug")


@pytest.mark.parametrize("base", ["base.toml", "./base.toml", "../shelf/base.toml", "run"])
def test_extends_finds_a_file_beside_the_recipe(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = tmp_path / "shelf"
    (shelf / "run").mkdir(parents=True)
    recipe(shelf, "n_layer = 3\nn_head = 3\n", "base.toml")
    recipe(shelf / "run", "n_layer = 3\nn_head = 3\n", "config.toml")
    path = recipe(shelf, f'extends = "{base}"\nn_head = 2\n')
    monkeypatch.chdir(tmp_path)
    model = load_recipe(path).model
    assert (model.n_layer, model.n_head) == (3, 2)


def test_a_later_way_to_say_a_thing_replaces_the_former(tmp_path: Path) -> None:
    recipe(tmp_path, "batch_tokens = 4096\nminutes = 3\n", "base.toml")
    train = load_recipe(recipe(tmp_path, 'extends = "base.toml"\ngradient_accumulation_steps = 2\nsteps = 4\n')).train
    assert (train.batch_tokens, train.gradient_accumulation_steps, train.minutes, train.steps) == (0, 2, 0, 4)


def test_a_saved_config_keeps_both_ways(tmp_path: Path) -> None:
    config = load_recipe("python")
    assert load_recipe(recipe(tmp_path, config_toml(config))).train.minutes == config.train.minutes == 2


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_of_extends_is_refused(length: int, tmp_path: Path) -> None:
    for number in range(length):
        recipe(tmp_path, f'extends = "./{(number + 1) % length}.toml"', f"{number}.toml")
    assert "a recipe needs a beginning" in refusal(str(tmp_path / "0.toml"))


REFUSED = {
    "n_layer = 0": "n_layer = 0 is not possible",
    "n_layer = true": "n_layer = True is not a whole number",
    "n_layer = 1.0": "n_layer = 1.0 is not a whole number",
    'n_layer = "3"': "n_layer = '3' is not a whole number",
    "lr = nan": "lr = nan is not possible",
    "lr = 1e999": "lr = inf is not possible",
    f"steps = {10**100}": "steps = a number of 333 bits is not possible",
    "n_layer = [3]": "n_layer = [3] is not a whole number",
    "n_layer = {a = 3}": "unknown table [n_layer]",
    "out = 2020-01-01": "out = datetime.date(2020, 1, 1) is not a string",
    "n_layers = 3": "unknown setting 'n_layers' (did you mean n_layer?)",
    "[model]\nn_layers = 3": "unknown setting 'n_layers' (did you mean n_layer?)",
    "[modle]\nn_layer = 3": "unknown table [modle] (did you mean model?); tables are model, data, optim, train",
    "[model.deep]\nn_layer = 3": "unknown setting 'deep'",
    "model = 3": "unknown setting 'model'",
    "lr = 1e-3\nlearning_rate = 1e-4": "lr is set twice, once as learning_rate",
    "lr = 1e-3\n[optim]\nlr = 1e-4": "lr is set twice",
    "[model]\nlr = 1e-3\n[optim]\nlr = 1e-4": "lr is set twice",
    'decay_lr = "maybe"': "decay_lr = 'maybe' is not true or false",
    "extends = 3": "extends = 3 is not the name of a recipe",
    'extends = "nowhere"': "no recipe 'nowhere'",
    'extends = "nowhere.toml"': "nowhere.toml: no such recipe file",
    'extends = ""': "no recipe ''",
    'extends = "a\\u0000b"': "no recipe 'a\\x00b'",
    'extends = "debgu"': "no recipe 'debgu' (did you mean debug?)",
    "n_layer = ": "not a TOML file",
    "import os": "not a TOML file",
    "x = " + "[" * 100_000: "not a TOML file",
    "x = " + "1" * 5000: "not a TOML file",
    "#" * (1 << 21): "too large for a recipe",
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.items(), ids=[text[:20] for text in REFUSED])
def test_a_wrong_file_is_refused_in_one_line_that_names_it(text: str, expected: str, tmp_path: Path) -> None:
    message = refusal(recipe(tmp_path, text))
    assert expected in message
    assert str(tmp_path) in message
    assert len(message) < 800


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_recipe(recipe(tmp_path, "")) == updated(RunConfig(), {"out": "runs/mine"}, where="test")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "link.toml").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    (tmp_path / "bytes.toml").write_bytes(b"out = '\xff'")
    expected = {
        "folder.toml": "not a file",
        "pipe.toml": "not a file",
        "/dev/zero": "no recipe",
        "link.toml": "no such recipe file",
        "missing.toml": "no such recipe file",
        "loop.toml": "cannot be read: Too many levels of symbolic links",
        "bytes.toml": "not a TOML file: 'utf-8' codec can't decode byte 0xff in position 7",
        ".": "no recipe",
        "x" * 5000: "no recipe",
        "x" * 5000 + ".toml": "cannot be read: File name too long",
    }
    for name, words in expected.items():
        assert words in refusal(str(tmp_path / name)), name


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object, **options: object) -> str:
        raise PermissionError(13, "Permission denied")

    path = recipe(tmp_path, "")
    monkeypatch.setattr(Path, "read_text", denied)
    assert refusal(path) == f"{path}: cannot be read: Permission denied"


@pytest.mark.parametrize("name", ["mine.toml", "mine.py", "config/mine.py"])
def test_code_in_a_recipe_is_never_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config").mkdir()
    Path(name).write_text("open('canary', 'w').close()\nn_layer = 3\n")
    refusal(name)
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    ("wrong", "right"), [("debgu", "debug"), ("gpt2-124", "gpt2-124m"), ("shakespeare_char", "shakespeare-char")]
)
def test_an_unknown_recipe_is_refused_with_the_nearest_and_all(wrong: str, right: str) -> None:
    message = refusal(wrong)
    assert f"(did you mean {right}?)" in message
    assert all(name in message for name in recipes.recipe_names())
