"""The command line of `quill bench`: its own options, and the settings of each side as `quill train` reads them."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from quillgpt.cli.arguments import flag, parse, setting_types
from quillgpt.cli.settings import Settings, load_settings
from quillgpt.errors import ConfigError, QuillError, shown
from quillgpt.recipes import recipe_names
from quillgpt.recipes.aliases import NO, YES

Against = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    flag('another recipe, or settings as "dtype=fp32 compile=on", measured in turn with the first; may be repeated'),
]
Json = Annotated[bool, flag("print JSON instead of a table")]


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Windows of each side, in turn."""

    windows: int = 5
    """how often each side is measured"""
    seconds: float = 2.0
    """about how long each time"""
    warmup: float = 2.0
    """seconds of each side before that, which do not count"""


@dataclass(frozen=True, kw_only=True)
class Profiling:
    """Another few steps, under torch's profiler."""

    profile: bool = False
    """also print the ten heaviest operators, and write a trace to look at"""
    trace: str = "auto"
    """file of the trace; auto: reports/trace-ACTION-NAME.json"""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Measure training: tokens/s, MFU, memory, and where a step's time goes."""

    against: Against = ()
    json: Json = False
    random_tokens: bool = False
    """tokens drawn at random instead of the recipe's data, which need not be there"""
    measuring: Measuring = field(default_factory=Measuring)
    profiling: Profiling = field(default_factory=Profiling)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Measure data: batches out of prepared tokens, and tokens out of text in one process."""

    against: Against = ()
    json: Json = False
    random_tokens: bool = False
    """tokens drawn at random instead of the recipe's data, which need not be there"""
    measuring: Measuring = field(default_factory=Measuring)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Measure sampling: reading a prompt (prefill) and writing token by token (decode).

    RECIPE is measured with random weights; or name a model: a run, a checkpoint, gpt2 ... gpt2-xl, a Hugging Face
    directory, ckpt.pt.
    """

    against: Against = ()
    json: Json = False
    samples: int = 1
    """texts written at once"""
    prompt_tokens: int = 512
    """length of the prompt; at most the context"""
    new_tokens: int = 128
    """length of each text"""
    quantize: str = "none"
    """weights in fewer bits, as in `quill sample`: none, int8 or int4; --against quantize=int4 compares"""
    measuring: Measuring = field(default_factory=Measuring)
    profiling: Profiling = field(default_factory=Profiling)


@dataclass(frozen=True, kw_only=True)
class TimeToLoss:
    """Train until a held-out loss is reached: seconds of training and of compiling, with evaluation apart.

    Exit code 76 where a run ends before.
    """

    loss: float = 0.0
    """the held-out loss to reach, in nats per token"""
    text: str = ""
    """the held-out text that judges: UTF-8, none of it trained on; nothing: the recipe's own held-out split"""
    seeds: int = 1
    """runs of each side, with consecutive seeds from --seed on"""
    against: Against = ()
    json: Json = False


ACTIONS: dict[str, type] = {"train": Train, "sample": Sample, "data": Data, "time-to-loss": TimeToLoss}
SETTINGS_TOLD = (
    "Besides these, every setting is a flag as in `quill train`: --n-layer 2 --dtype fp32 (docs/settings.md). "
    "docs/bench.md says what every number is."
)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side as asked for: what it is called, a recipe or model, and flags of settings."""

    name: str
    subject: str
    flags: list[str]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line, taken apart. `options` are those of the action: a `Train`, `Sample`, `Data` or `TimeToLoss`."""

    action: str
    options: Any
    sides: list[Side]


def taken_apart(action: str, arguments: Sequence[str]) -> Command:
    """The subjects in front, the benchmark's own options, and the flags that are settings; --help prints and exits."""
    schema, words = ACTIONS[action], list(arguments)
    subjects = []
    while words and not words[0].startswith("-"):
        subjects.append(words.pop(0))
    own, flags = split_flags(words, setting_types(schema))
    prog = f"quill bench {action} RECIPE ..."
    help_asked = ["--help"] if {"-h", "--help"} & {*flags} else []
    options, _ = parse(schema, own + help_asked, prog=prog, description=f"{schema.__doc__}\n\n{SETTINGS_TOLD}")
    if not subjects:
        known = ", ".join(recipe_names())
        raise ConfigError(f"which recipe? `quill bench {action} RECIPE ...`, where RECIPE is one of {known}, or a file")
    sides = [Side(name=word, subject=word, flags=flags) for word in subjects]
    return Command(action=action, options=options, sides=sides + [against(text, sides[0]) for text in options.against])


def split_flags(words: Sequence[str], types: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The flags of these names with their values, and the rest in its order."""
    own: list[str] = []
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        given, has_value, _ = word.partition("=")
        name = given.removeprefix("--").replace("-", "_")
        is_no = name.startswith("no_") and types.get(name.removeprefix("no_")) is bool
        if not word.startswith("--") or not (name in types or is_no):
            others.append(word)
            continue
        own.append(word)
        takes_next = rest and (types.get(name) is not bool or rest[0].lower() in YES + NO)
        if not has_value and not is_no and takes_next:
            own.append(rest.pop(0))
    return own, others


def against(text: str, first: Side) -> Side:
    """What --against names: RECIPE, SETTING=VALUE of the first side, or a recipe and settings behind it."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--against {shown(text)}: {error}") from None
    if not words:
        raise ConfigError("--against needs a recipe, or a setting as dtype=fp32")
    subject = first.subject if "=" in words[0] else words.pop(0)
    wrong = next((word for word in words if "=" not in word), "")
    if wrong:
        raise ConfigError(f"--against {shown(text)}: {shown(wrong)} is no setting; it needs a value, as in dtype=fp32")
    return Side(name=text, subject=subject, flags=[*first.flags, *(f"--{word.removeprefix('--')}" for word in words)])


def settings_of(command: Command, side: Side) -> Settings:
    """The settings of a side, without what a measurement does not do."""
    try:
        settings = load_settings(
            [side.subject, *side.flags],
            prog=f"quill bench {command.action}",
            others=setting_types(ACTIONS[command.action]),
        )
    except QuillError as error:
        if side in command.sides[: len(command.sides) - len(command.options.against)]:
            raise
        raise type(error)(f"--against {shown(side.name)}: {error}") from None
    for name in ("out", "eval_only", "fresh"):
        if settings.origins.get(name, "").startswith("flag"):
            raise ConfigError(f"--{name.replace('_', '-')}: `quill bench` leaves no run behind; leave it out")
    if settings.is_dry_run:
        raise ConfigError("--dry-run is of `quill train`; `quill bench` leaves nothing behind")
    return settings
