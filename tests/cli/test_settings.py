"""From a command line to settings: names forgiving, values strict, nanoGPT's commands, and never a traceback."""

import random
import string
from pathlib import Path

import pytest

from quillgpt.cli.settings import load_settings
from quillgpt.config import RunConfig, flatten
from quillgpt.errors import ConfigError, QuillError
from quillgpt.recipes import load_recipe
from quillgpt.recipes.aliases import ALIASES, SWITCHES, VALUES

DEFAULTS = flatten(RunConfig())
DEBUG = flatten(load_recipe("debug"))


def changed(line: str) -> dict[str, object]:
    """The settings that the flags give another value than the recipe `debug`."""
    settings = flatten(load_settings(["debug", *line.split()]).config)
    return {name: value for name, value in settings.items() if value != DEBUG[name]}


def refusal(*words: str) -> str:
    """The one line with which a command line is refused."""
    with pytest.raises(ConfigError) as caught:
        load_settings(list(words))
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 700
    return message


@pytest.mark.parametrize(
    ("line", "expected"),
    {
        "": {},
        "--n-layer 3": {"n_layer": 3},
        "--n_layer 3": {"n_layer": 3},
        "--n-layer=3": {"n_layer": 3},
        "--n_layer=3": {"n_layer": 3},
        "--n-layer 3 --n-layer 5": {"n_layer": 5},
        "--n-layer 5 --n_layer=3": {"n_layer": 3},
        "--n_layer 3 --lr 1": {"n_layer": 3, "lr": 1.0},
        "--lr 4e-3 --min-lr=0": {"lr": 4e-3, "min_lr": 0.0},
        "--no-bias": {"bias": False},
        "--no_bias": {"bias": False},
        "--bias=False": {"bias": False},
        "--bias false": {"bias": False},
        "--bias no": {"bias": False},
        "--bias=0": {"bias": False},
        "--no-bias --bias": {},
        "--bias": {},
        "--bias --no-bias": {"bias": False},
        "--bias=yes": {},
        "--qk-norm": {"qk_norm": True},
        "--qk-norm --n-layer 3": {"qk_norm": True, "n_layer": 3},
        "--qk_norm=on": {"qk_norm": True},
        "--compile": {"compile": "on"},
        "--compile=True": {"compile": "on"},
        "--compile true": {"compile": "on"},
        "--compile=auto": {"compile": "auto"},
        "--compile auto": {"compile": "auto"},
        "--compile --no-compile": {},
        "--compile=False": {},
        "--out a=b": {"out": "a=b"},
        "--out -": {"out": "-"},
        "--path -x": {"path": "-x"},
    }.items(),
    ids=str,
)
def test_flags_are_forgiving_about_names(line: str, expected: dict[str, object]) -> None:
    assert changed(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    {
        "--n-layer": "--n-layer needs a value, as in --n-layer=VALUE",
        "--n-layer --lr 3": "--n-layer needs a value",
        "--track-name --dry-run": "--track-name needs a value",
        "--n-layer=": "--n-layer '' is not a whole number",
        "--n-layer 1.5": "--n-layer '1.5' is not a whole number",
        "--n-layer 1e3": "--n-layer '1e3' is not a whole number",
        "--n_layer=true": "--n_layer 'true' is not a whole number",
        "--block_size x": "--block_size 'x' is not a whole number",
        "--n-layer " + "9" * 5000: "is not a whole number",
        "--n-layer 0": "n_layer = 0 is not possible",
        "--seed -5": "seed = -5 is not possible",
        "--lr -1": "lr = -1.0 is not possible",
        "--lr nan": "lr = nan is not possible",
        "--lr=1e999": "lr = inf is not possible",
        "--lr fast": "--lr 'fast' is not a number",
        "--bias maybe": "--bias 'maybe' is neither true nor false",
        "--bias=maybe": "--bias 'maybe' is neither true nor false",
        "--no-bias=maybe": "no flag --no-bias",
        "--compile maybe": "compile = 'maybe' does not exist",
        "--wandb_log=perhaps": "wandb_log = 'perhaps' is not true or false",
        "--dry-run=perhaps": "--dry-run 'perhaps' is neither true nor false",
        "--out=": "out = '' is not possible",
        "--dtype float64": "dtype = 'float64' does not exist",
        "--n-layre 3": "no flag --n-layre (did you mean --n-layer?)",
        "--n_layre=3": "no flag --n_layre (did you mean --n-layer?)",
        "--learning_rat 3": "no flag --learning_rat (did you mean --learning-rate?)",
        "--max_itters=3": "no flag --max_itters (did you mean --max-iters?)",
        "--dry-rum": "no flag --dry-rum (did you mean --dry-run?)",
        "--no-steps": "no flag --no-steps",
        "--zzz": "no flag --zzz;",
        "--=3": "no flag --;",
        "-x": "-x",
        "-n-layer 3": "-n-layer",
        "word": "word",
        "-- word": "word",
        "--n-layer 3 4": "4",
        "--help=1": "no flag --help",
        "--steps 5 --minutes 2": "--steps and --minutes both set how long to train",
        "--batch-tokens 1024 --gradient-accumulation-steps 2": "expected 0, because gradient_accumulation_steps",
        "--batch-tokens 100": "batch_tokens = 100 is not possible: expected a multiple of context_length = 64",
        "--n-head 3": "n_head = 3 is not possible: expected a divisor of n_embd = 64",
    }.items(),
    ids=lambda text: str(text)[:50],
)
def test_a_mistake_is_one_line_that_names_the_flag(line: str, expected: str) -> None:
    assert expected in refusal("debug", *line.split())


def test_a_missing_recipe_is_asked_for() -> None:
    assert refusal().startswith("which recipe? `quill train RECIPE ...`, where RECIPE is one of debug, ")
    assert refusal("--n-layer", "3").startswith("which recipe?")


@pytest.mark.parametrize("word", ["--dry-run", "--dry_run", "--dry-run=True", "--dry_run=yes"])
def test_dry_run_is_found_anywhere(word: str) -> None:
    assert load_settings(["debug", word, "--steps", "3"]).is_dry_run
    assert load_settings(["debug", "--steps", "3", word]).is_dry_run
    assert not load_settings(["debug", word, "--dry-run=false"]).is_dry_run


def test_each_setting_has_its_origin(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "debug"\nsteps = 9\n')
    settings = load_settings([str(tmp_path / "mine.toml"), "--block_size=32", "--lr", "1"])
    expected = {
        "steps": "recipe mine",
        "n_layer": "recipe debug",
        "context_length": "flag --block_size",
        "lr": "flag --lr",
        "out": "recipe's name",
    }
    assert {name: settings.origins[name] for name in expected} == expected
    assert "dropout" not in settings.origins
    assert settings.config.train.out == "runs/mine"


def test_a_flag_replaces_the_recipes_other_way_to_say_it() -> None:
    by_steps = load_settings(["python", "--steps", "5"])
    assert (by_steps.config.train.minutes, by_steps.config.train.steps) == (0, 5)
    assert "minutes" not in by_steps.origins
    by_batches = load_settings(["python", "--gradient_accumulation_steps=3"]).config.train
    assert (by_batches.batch_tokens, by_batches.gradient_accumulation_steps) == (0, 3)
    by_minutes = load_settings(["debug", "--minutes", "1"]).config.train
    assert (by_minutes.minutes, by_minutes.steps) == (1, 200)


README = "--eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128"
NANOGPT = {
    "config/train_shakespeare_char.py": "n_layer=6 source=shakespeare tokenizer=character",
    f"config/train_shakespeare_char.py --device=cpu --compile=False {README} --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0": "device=cpu compile=off eval_iters=20 log_every=1 context_length=64 batch_size=12 n_layer=4 "
    "n_head=4 n_embd=128 steps=2000 decay_steps=2000 dropout=0.0 lr=0.001",
    "config/train_shakespeare_char.py --device=mps": "device=mps",
    "config/train_gpt2.py": "n_layer=12 batch_tokens=491520 steps=600000",
    "config/train_gpt2.py --compile=False": "compile=off",
    "config/train_gpt2.py --dtype=float32": "dtype=fp32",
    "config/train_gpt2.py --dtype=float16": "dtype=fp16",
    "config/train_gpt2.py --dtype=bfloat16": "dtype=bf16",
    "config/train_gpt2.py --wandb_log=True --wandb_project=x --wandb_run_name=y": "track=wandb track_project=x "
    "track_name=y",
    "config/train_gpt2.py --wandb_log=False": "track=none",
    "config/train_gpt2.py --eval_only=True": "eval_only=True",
    "config/train_gpt2.py --batch_size=4 --gradient_accumulation_steps=10": "batch_size=4 batch_tokens=0 "
    "gradient_accumulation_steps=10",
    "config/train_gpt2.py --init_from=resume": "init=scratch fresh=False",
    "config/train_gpt2.py --init_from=scratch": "init=scratch",
    "config/train_gpt2.py --init_from=gpt2-xl": "init=gpt2-xl",
    "config/train_gpt2.py --out_dir=out --always_save_checkpoint=True": "out=out",
    "config/train_gpt2.py --always_save_checkpoint=False": "out=runs/gpt2-124m",
    "config/train_gpt2.py --decay_lr=False": "schedule=constant warmup_steps=0",
    "config/train_gpt2.py --decay_lr=True": "schedule=cosine warmup_steps=2000",
    "config/train_gpt2.py --warmup_iters=7 --min_lr=1e-5 --learning_rate=2e-4": "warmup_steps=7 min_lr=1e-05 lr=0.0002",
    "config/train_gpt2.py --beta1=0.8 --beta2=0.9 --grad_clip=0.5 --weight_decay=0.2": "beta1=0.8 beta2=0.9 "
    "gradient_clip=0.5 weight_decay=0.2",
    "config/train_gpt2.py --backend=gloo --dataset=openwebtext": "dist_backend=gloo source=openwebtext",
    "train_shakespeare_char --dataset=shakespeare_char": "source=shakespeare tokenizer=character",
    "config/train_shakespeare.py --dataset=shakespeare": "source=shakespeare tokenizer=gpt2",
    "config/train_gpt2.py --eval_interval=5 --n_layer=2 --n_head=2 --n_embd=64 --bias=True": "bias=True "
    "eval_every=5 n_layer=2 n_head=2 n_embd=64",
}
"""commands of nanoGPT's README and of its users, behind `python train.py`, and what they come to"""


@pytest.mark.parametrize(("command", "expected"), NANOGPT.items())
def test_nanogpts_commands_mean_the_same_here(command: str, expected: str) -> None:
    settings = flatten(load_settings(command.split()).config)
    meant = dict(word.split("=", 1) for word in expected.split())
    assert {name: str(settings[name]) for name in meant} == meant


NANOGPTS_NAMES = """
    out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint init_from wandb_log wandb_project
    wandb_run_name dataset gradient_accumulation_steps batch_size block_size n_layer n_head n_embd dropout bias
    learning_rate max_iters weight_decay beta1 beta2 grad_clip decay_lr warmup_iters lr_decay_iters min_lr backend
    device dtype compile
"""


@pytest.mark.parametrize("name", NANOGPTS_NAMES.split())
def test_every_setting_of_nanogpt_has_a_place(name: str) -> None:
    assert name in {*DEFAULTS, *ALIASES, *SWITCHES}


@pytest.mark.parametrize("name", [*ALIASES, *SWITCHES])
def test_a_foreign_name_does_not_hide_one_of_ours(name: str) -> None:
    assert name not in DEFAULTS


@pytest.mark.parametrize(
    "settings",
    [
        *[{name: None} for name in ALIASES.values()],
        *VALUES.values(),
        *[meaning for meanings in SWITCHES.values() for meaning in meanings],
    ],
    ids=str,
)
def test_a_foreign_name_means_settings_that_exist(settings: dict[str, object]) -> None:
    assert settings.keys() <= DEFAULTS.keys()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    {
        "SM": "softmax",
        "GK": "gaussian",
        "GKpoly-2": "gaussian-poly-2",
        "GKpoly-12": "gaussian-poly-12",
        "PA_relu": "pointwise-relu",
        "PA_softplus": "pointwise-softplus",
    }.items(),
)
@pytest.mark.parametrize("flag", ["--attn_type", "--attention"])
def test_the_short_names_of_attentions_are_known(flag: str, theirs: str, ours: str, tmp_path: Path) -> None:
    assert load_settings(["debug", flag, theirs]).config.model.attention == ours
    (tmp_path / "mine.toml").write_text(f'extends = "debug"\n{flag[2:]} = "{theirs}"\n')
    assert load_settings([str(tmp_path / "mine.toml")]).config.model.attention == ours


@pytest.mark.parametrize("name", [name for name, value in DEFAULTS.items() if isinstance(value, bool)])
def test_every_boolean_has_its_forms(name: str) -> None:
    flag = "--" + name.replace("_", "-")
    for words, expected in [
        ([flag], True),
        ([flag, "no"], False),
        ([f"--no-{flag[2:]}"], False),
        ([f"{flag}=1"], True),
    ]:
        assert flatten(load_settings(["debug", *words]).config)[name] is expected


WORDS = [
    *(f"--{name}" for name in [*DEFAULTS, *ALIASES, *SWITCHES]),
    *(f"--{name.replace('_', '-')}=" for name in DEFAULTS),
    *("--no-bias", "--no-compile", "--dry-run", "--", "-", "-x", "=", "--=", "--no-", "", " ", "--n", "---n-layer"),
    *("debug", "python", "nowhere.toml", "config/train_gpt2.py", ".", "/", "~", "*", "é", "\x1b[31m", "\n", "\ud800"),
    *("0", "1", "-1", "3", "1.5", "1e3", "1e999", "nan", "-inf", "0x10", "1_000", "9" * 30, "true", "False", "on"),
]


def random_words(dice: random.Random) -> list[str]:
    """A few words that look like a command line, whole or mangled."""
    words = dice.choices(WORDS, k=dice.randint(0, 7))
    for i in range(len(words)):
        if dice.random() < 0.2:
            words[i] += dice.choice(WORDS)
        elif dice.random() < 0.2:
            words[i] = "".join(dice.choices(string.printable + "é🙂\0", k=dice.randint(0, 12)))
    return [dice.choice(["debug", "python"]), *words] if dice.random() < 0.8 else words


def outcome(words: list[str]) -> str | int | None:
    """What comes of a command line: an error's message, or the exit code, or None where it is understood."""
    try:
        load_settings(words)
    except QuillError as error:
        return str(error)
    except SystemExit as stop:
        return stop.code or 0
    return None


@pytest.mark.parametrize("seed", range(10))
def test_any_command_line_is_understood_or_refused_and_leaves_nothing_behind(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dice = random.Random(seed)
    outcomes = [outcome(random_words(dice)) for _ in range(200)]
    messages = [message for message in outcomes if isinstance(message, str)]
    assert {None, 0} >= set(outcomes) - set(messages)
    assert all(0 < len(message) < 3000 for message in messages)
    assert len(set(messages)) > 50
    assert None in outcomes
    assert not list(tmp_path.iterdir())
