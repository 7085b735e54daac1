"""From a command line to settings: flags in every form, strict values, nanoGPT's commands, and never a traceback."""

import random
import string
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from quillgpt.cli import prepare, sample, tokenizer
from quillgpt.cli.arguments import flag, load_settings, parse, setting_types
from quillgpt.config import RunConfig, flatten
from quillgpt.errors import ConfigError, QuillError
from quillgpt.recipes import recipe_config
from quillgpt.recipes.aliases import ALIASES, SWITCHES, VALUES

DEFAULTS = flatten(RunConfig())
DEBUG = flatten(recipe_config("debug"))


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A group."""

    size: int = 3
    """how many"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every kind."""

    word: Annotated[tyro.conf.Positional[str], flag("a word")] = ""
    names: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], flag("some names")] = ()
    prompt: Annotated[str, flag("a text", "-p")] = ""
    is_loud: Annotated[bool, flag("louder")] = False
    rate: float = 0.5
    """how fast"""
    inner: Inner = Inner()


def test_words_become_options_or_a_one_line_error() -> None:
    types = setting_types(Options)
    assert list(types) == ["word", "names", "prompt", "is_loud", "rate", "size"]
    assert (types["is_loud"], types["rate"], types["size"]) == (bool, float, int)
    for line, expected in {
        "": Options(),
        "hello": Options(word="hello"),
        "--is-loud|hello": Options(word="hello", is_loud=True),
        "hello|--is_loud": Options(word="hello", is_loud=True),
        "--is-loud|no|hello": Options(word="hello", is_loud=False),
        "--names|a|--names=b": Options(names=("a", "b")),
        "-p|a text": Options(prompt="a text"),
        "--prompt=--odd": Options(prompt="--odd"),
        "--prompt|-": Options(prompt="-"),
        "--prompt|-5": Options(prompt="-5"),
        "--prompt|": Options(prompt=""),
        "--size|-4|--rate=-1e-3": Options(rate=-1e-3, inner=Inner(size=-4)),
        "--size| 4 ": Options(inner=Inner(size=4)),
    }.items():
        assert parse(Options, line.split("|") if line else [], prog="quill test")[0] == expected, line
    for line in ("--size", "--size|x", "--sizes|3", "a|b", "-q", "-p", "--rate="):
        with pytest.raises(ConfigError) as caught:
            parse(Options, line.split("|"), prog="quill test")
        assert str(caught.value).isprintable()


def test_help_is_printed_and_the_default_can_depend_on_the_flags(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Options, ["--help"], prog="quill test")
    assert not caught.value.code
    assert "how many" in capsys.readouterr().out

    def default(given: Iterable[str]) -> Options:
        return Options(word=",".join(given))

    assert parse(Options, ["--rate", "1", "--size=2"], prog="quill", default=default)[0].word == "rate,size"


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


def test_a_flag_may_be_written_in_every_form() -> None:
    for line, expected in {
        "": {},
        "--n-layer 3": {"n_layer": 3},
        "--n_layer=3 --lr 1": {"n_layer": 3, "lr": 1.0},
        "--n-layer 5 --n_layer=3": {"n_layer": 3},
        "--lr 4e-3 --min-lr=0": {"lr": 4e-3, "min_lr": 0.0},
        "--bias --no-bias": {"bias": False},
        "--no-bias --bias": {},
        "--qk-norm --n-layer 3": {"qk_norm": True, "n_layer": 3},
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
    }.items():
        assert changed(line) == expected, line
    forms = ("--{a}", "--{a}=1", "--{b} yes", "--{a}=on", "--{a} no", "--no-{a}", "--no_{b}", "--{a}=False")
    booleans = [name for name, value in DEFAULTS.items() if isinstance(value, bool)]
    for number, form in enumerate(forms):  # every form, and every setting
        name = booleans[number % len(booleans)]
        line, is_on = form.format(a=name.replace("_", "-"), b=name), number < 4
        assert flatten(load_settings(["debug", *line.split()]).config)[name] is is_on, line


def test_a_mistake_is_one_line_that_names_the_flag() -> None:
    for line, expected in {
        "--n-layer": "--n-layer needs a value, as in --n-layer=VALUE",
        "--n-layer --lr 3": "--n-layer needs a value",
        "--track-name --dry-run": "--track-name needs a value",
        "--n-layer=": "invalid --n-layer: '' (must be an integer)",
        "--n-layer 1.5": "invalid --n-layer: '1.5' (must be an integer)",
        "--n-layer 1e3": "invalid --n-layer: '1e3' (must be an integer)",
        "--n_layer=true": "invalid --n_layer: 'true' (must be an integer)",
        "--block_size x": "invalid --block_size: 'x' (must be an integer)",
        "--n-layer " + "9" * 5000: "(must be an integer)",
        "--n-layer 0": "invalid n_layer: 0",
        "--seed -5": "invalid seed: -5",
        "--lr -1": "invalid lr: -1.0",
        "--lr nan": "invalid lr: nan",
        "--lr=1e999": "invalid lr: inf",
        "--lr fast": "invalid --lr: 'fast' (must be a number)",
        "--bias maybe": "invalid --bias: 'maybe' (must be true or false)",
        "--bias=maybe": "invalid --bias: 'maybe' (must be true or false)",
        "--no-bias=maybe": "no flag --no-bias",
        "--compile maybe": "invalid compile: 'maybe'",
        "--wandb_log=perhaps": "invalid wandb_log: 'perhaps' (must be true or false",
        "--dry-run=perhaps": "invalid --dry-run: 'perhaps' (must be true or false)",
        "--out=": "invalid out: ''",
        "--dtype float64": "invalid dtype: 'float64'",
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
        "--batch-tokens 1024 --gradient-accumulation-steps 2": "(must be 0, because gradient_accumulation_steps",
        "--batch-tokens 100": "invalid batch_tokens: 100 (must be a multiple of context_length = 64",
        "--n-head 3": "invalid n_head: 3 (must be a divisor of n_embd = 64",
    }.items():
        assert expected in refusal("debug", *line.split())
    for words in ([], ["--n-layer", "3"]):
        assert refusal(*words).startswith("which recipe? `quill train RECIPE ...`, where RECIPE is one of debug, ")


def test_dry_run_is_found_anywhere() -> None:
    for word in ("--dry-run", "--dry_run", "--dry-run=True", "--dry_run=yes"):
        assert load_settings(["debug", word, "--steps", "3"]).is_dry_run
        assert not load_settings(["debug", "--steps", "3", word, "--dry-run=false"]).is_dry_run


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


def test_a_flag_replaces_the_recipes_alternative_setting() -> None:
    by_steps = load_settings(["python", "--steps", "5"])
    assert (by_steps.config.train.minutes, by_steps.config.train.steps) == (0, 5)
    assert "minutes" not in by_steps.origins
    by_batches = load_settings(["python", "--gradient_accumulation_steps=3"]).config.train
    assert (by_batches.batch_tokens, by_batches.gradient_accumulation_steps) == (0, 3)
    by_minutes = load_settings(["debug", "--minutes", "1"]).config.train
    assert (by_minutes.minutes, by_minutes.steps) == (1, 200)


README = "--eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128"
GPT2 = "config/train_gpt2.py"
NANOGPT = {
    "config/train_shakespeare_char.py": "n_layer=6 source=shakespeare tokenizer=character",
    f"config/train_shakespeare_char.py --device=cpu --compile=False {README} --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0": "device=cpu compile=off eval_iters=20 log_every=1 context_length=64 batch_size=12 n_layer=4 "
    "n_head=4 n_embd=128 steps=2000 decay_steps=2000 dropout=0.0 lr=0.001",
    "config/train_shakespeare_char.py --device=mps": "device=mps",
    GPT2: "n_layer=12 batch_tokens=491520 steps=600000",
    f"{GPT2} --compile=False": "compile=off",
    f"{GPT2} --dtype=float32": "dtype=fp32",
    f"{GPT2} --dtype=float16": "dtype=fp16",
    f"{GPT2} --dtype=bfloat16": "dtype=bf16",
    f"{GPT2} --wandb_log=True --wandb_project=x --wandb_run_name=y": "track=wandb track_project=x track_name=y",
    f"{GPT2} --wandb_log=False": "track=none",
    f"{GPT2} --eval_only=True": "eval_only=True",
    f"{GPT2} --batch_size=4 --gradient_accumulation_steps=10": "batch_size=4 batch_tokens=0 "
    "gradient_accumulation_steps=10",
    f"{GPT2} --init_from=resume": "init=scratch fresh=False",
    f"{GPT2} --init_from=scratch": "init=scratch",
    f"{GPT2} --init_from=gpt2-xl": "init=gpt2-xl",
    f"{GPT2} --out_dir=out --always_save_checkpoint=True": "out=out",
    f"{GPT2} --always_save_checkpoint=False": "out=runs/gpt2-124m",
    f"{GPT2} --decay_lr=False": "schedule=constant warmup_steps=0",
    f"{GPT2} --decay_lr=True": "schedule=cosine warmup_steps=2000",
    f"{GPT2} --warmup_iters=7 --min_lr=1e-5 --learning_rate=2e-4": "warmup_steps=7 min_lr=1e-05 lr=0.0002",
    f"{GPT2} --beta1=0.8 --beta2=0.9 --grad_clip=0.5 --weight_decay=0.2": "beta1=0.8 beta2=0.9 gradient_clip=0.5 "
    "weight_decay=0.2",
    f"{GPT2} --backend=gloo --dataset=openwebtext": "dist_backend=gloo source=openwebtext",
    "train_shakespeare_char --dataset=shakespeare_char": "source=shakespeare tokenizer=character",
    "config/train_shakespeare.py --dataset=shakespeare": "source=shakespeare tokenizer=gpt2",
    f"{GPT2} --eval_interval=5 --n_layer=2 --n_head=2 --n_embd=64 --bias=True": "bias=True eval_every=5 n_layer=2 "
    "n_head=2 n_embd=64",
}
"""nanoGPT's commands, after `python train.py`, and the settings they give"""
NANOGPTS_NAMES = """
    out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint init_from wandb_log wandb_project
    wandb_run_name dataset gradient_accumulation_steps batch_size block_size n_layer n_head n_embd dropout bias
    learning_rate max_iters weight_decay beta1 beta2 grad_clip decay_lr warmup_iters lr_decay_iters min_lr backend
    device dtype compile
"""


def test_nanogpts_commands_have_the_same_settings_here() -> None:
    for command, words in NANOGPT.items():
        settings = flatten(load_settings(command.split()).config)
        expected = dict(word.split("=", 1) for word in words.split())
        assert {name: str(settings[name]) for name in expected} == expected, command


def test_every_name_of_others_stands_for_existing_settings_and_hides_none() -> None:
    assert set(NANOGPTS_NAMES.split()) <= {*DEFAULTS, *ALIASES, *SWITCHES}
    assert not {*ALIASES, *SWITCHES} & {*DEFAULTS}
    assert {*ALIASES.values(), *(name for settings in VALUES.values() for name in settings)} <= {*DEFAULTS}
    assert {name for pair in SWITCHES.values() for settings in pair for name in settings} <= {*DEFAULTS}


def test_the_short_names_of_attentions_are_known(tmp_path: Path) -> None:
    names = {"SM": "softmax", "GK": "gaussian", "GKpoly-2": "gaussian-poly-2", "GKpoly-12": "gaussian-poly-12"}
    for theirs, ours in (names | {"PA_relu": "pointwise-relu", "PA_softplus": "pointwise-softplus"}).items():
        assert load_settings(["debug", "--attn_type", theirs]).config.model.attention == ours
        for name in ("attn_type", "attention"):
            (tmp_path / "mine.toml").write_text(f'extends = "debug"\n{name} = "{theirs}"\n')
            assert recipe_config(str(tmp_path / "mine.toml")).model.attention == ours


WORDS = [
    *(f"--{name}" for name in [*DEFAULTS, *ALIASES, *SWITCHES]),
    *(f"--{name.replace('_', '-')}=" for name in DEFAULTS),
    *("--no-bias", "--no-compile", "--dry-run", "--", "-", "-x", "=", "--=", "--no-", "", " ", "--n", "---n-layer"),
    *("debug", "python", "nowhere.toml", "config/train_gpt2.py", ".", "/", "~", "*", "é", "\x1b[31m", "\n", "\ud800"),
    *("0", "1", "-1", "3", "1.5", "1e3", "1e999", "nan", "-inf", "0x10", "1_000", "9" * 30, "true", "False", "on"),
]
FLAG_VALUES = ["", "-", "--", "-1", "0", "1e999", "nan", "x", "é\0", "true", "no", "-p", "-m", "=", "\n", "--help"]


def random_words(dice: random.Random) -> list[str]:
    """A few words that look like a command line, some of them damaged."""
    words = dice.choices(WORDS, k=dice.randint(0, 7))
    for i in range(len(words)):
        if dice.random() < 0.2:
            words[i] += dice.choice(WORDS)
        elif dice.random() < 0.2:
            words[i] = "".join(dice.choices(string.printable + "é🙂\0", k=dice.randint(0, 12)))
    return [dice.choice(["debug", "python"]), *words] if dice.random() < 0.8 else words


def outcome(act, words: list[str]) -> str | int | None:
    """The message of an error, or the exit code, or None if the words are accepted."""
    try:
        act(words)
    except QuillError as error:
        return str(error)
    except SystemExit as stop:
        return stop.code or 0
    return None


def test_any_command_line_is_accepted_refused_or_answered_with_help_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dice = random.Random(1)
    outcomes = [outcome(load_settings, random_words(dice)) for _ in range(400)]
    schemas = (
        Options,
        prepare.PrepareOptions,
        tokenizer.TokenizerOptions,
        tokenizer.InspectOptions,
        sample.SampleOptions,
    )
    for schema in schemas:
        flags = [f"--{name}" for name in setting_types(schema)]
        flags += [f"--no-{name[2:]}" for name in flags] + [f"{name.replace('_', '-')}=" for name in flags]
        lines = [dice.choices(flags + FLAG_VALUES * 2, k=dice.randint(1, 6)) for _ in range(60)]
        lines += [[name + dice.choice(FLAG_VALUES)] for name in flags]
        outcomes += [outcome(lambda words, schema=schema: parse(schema, words, prog="quill test"), x) for x in lines]
    messages = [message for message in outcomes if isinstance(message, str)]
    assert {kind for kind in outcomes if not isinstance(kind, str)} == {None, 0}
    assert all(0 < len(message) < 3000 for message in messages)
    assert len(set(messages)) > 200
    assert not list(tmp_path.iterdir())
