"""`quill bench train|sample|data|time-to-loss RECIPE ...`: the speed of training, sampling and loading here.

The table or the JSON goes to standard output, messages and progress to standard error. The runs are in a temporary
directory, which is always deleted at the end.
"""

import itertools
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from quillgpt.cli.arguments import Settings, flag, load_settings, parse, setting_types
from quillgpt.cli.console import ProgressReporter, progress_display
from quillgpt.config import RunConfig, group_of
from quillgpt.errors import ConfigError, DiskError, QuillError, nearest, require, shown
from quillgpt.recipes import recipe_names
from quillgpt.recipes.aliases import NO, RECIPES, YES

if TYPE_CHECKING:
    from quillgpt.lab.bench.sampling import SamplingModel
    from quillgpt.training.screen import Screen

REPORTS = Path("reports")

USAGE = """\
usage: quill bench train RECIPE ...          tokens/s, MFU, memory, and the time of each part of a step
       quill bench sample RECIPE|MODEL ...   prefill and decode, tokens/s
       quill bench data RECIPE ...           batches from prepared tokens, tokens from text
       quill bench time-to-loss RECIPE ...   seconds of training until a validation loss is reached

Several recipes, or --against RECIPE or --against SETTING=VALUE, are measured in turns in one process, so that other
work on the machine disturbs all alike; the ratio to the first is printed with its spread.

  quill bench train python --profile
  quill bench train python --against dtype=fp32
  quill bench sample runs/python --against dtype=bf16 --against quantize=int8
  quill bench time-to-loss shakespeare-char --loss 1.8857 --seeds 3

`quill bench train --help` lists its flags; docs/bench.md explains every figure."""

MORE_FLAGS = (
    "Every setting is also a flag as in `quill train`: --n-layer 2 --dtype fp32 (docs/settings.md). "
    "docs/bench.md explains every figure."
)
SAMPLING_FLAGS = ("device", "dtype", "threads", "seed", "compile")
"""settings of a run that sampling has too"""

Against = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    flag('another recipe, or settings as "dtype=fp32 compile=on", measured in turns with the first; may be repeated'),
]
Json = Annotated[bool, flag("print JSON instead of a table")]
RandomTokens = Annotated[bool, flag("random tokens instead of the recipe's data, which need not be prepared")]


@dataclass(frozen=True, kw_only=True)
class _Benchmark:
    against: Against = ()
    json: Json = False
    windows: int = 5
    """measurements (windows) of each side, in turns"""
    seconds: float = 2.0
    """approximate length of a window"""
    warmup: float = 2.0
    """seconds of warm-up of each side"""


@dataclass(frozen=True, kw_only=True)
class _ProfiledBenchmark(_Benchmark):
    profile: bool = False
    """also print the ten heaviest operators of a few more steps, and write a trace"""
    trace: str = "auto"
    """file of the trace; auto: reports/trace-ACTION-NAME.json"""


@dataclass(frozen=True, kw_only=True)
class TrainBenchmark(_ProfiledBenchmark):
    """Measure training: tokens/s, MFU, memory, and the time of each part of a step."""

    random_tokens: RandomTokens = False


@dataclass(frozen=True, kw_only=True)
class DataBenchmark(_Benchmark):
    """Measure data: batches from prepared tokens, and tokens from text in one process."""

    random_tokens: RandomTokens = False


@dataclass(frozen=True, kw_only=True)
class SampleBenchmark(_ProfiledBenchmark):
    """Measure sampling: reading a prompt (prefill) and generating token by token (decode).

    RECIPE has random weights; or give a model: a run, a checkpoint, gpt2 ... gpt2-xl, a Hugging Face directory, ckpt.pt
    """

    samples: int = 1
    """texts generated at once"""
    prompt_tokens: int = 512
    """length of the prompt; at most the context"""
    new_tokens: int = 128
    """length of each text"""
    quantize: str = "none"
    """quantization of the weights, as in `quill sample`: none, int8 or int4; --against quantize=int4 compares"""


@dataclass(frozen=True, kw_only=True)
class TimeToLossBenchmark:
    """Train until a validation loss is reached: seconds of training and of compiling, without those of evaluation.

    Exit code 76 if a run does not reach it.
    """

    loss: float = 0.0
    """the validation loss to reach, in nats per token"""
    text: str = ""
    """the validation text: UTF-8, not part of the training data; empty: the recipe's own validation split"""
    seeds: int = 1
    """runs of each side, with consecutive seeds from --seed on"""
    against: Against = ()
    json: Json = False


ACTIONS = {
    "train": TrainBenchmark,
    "sample": SampleBenchmark,
    "data": DataBenchmark,
    "time-to-loss": TimeToLossBenchmark,
}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One side of the comparison: its name, its source (a recipe or a model), and the flags of its settings."""

    name: str
    source: str
    flags: list[str]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A parsed command line; options: an instance of the action's class in `ACTIONS`."""

    action: str
    options: Any
    sides: list[Contender]


Result = tuple[Sequence[Any], Callable[[Any], None], list[str], dict[str, Any]]
"""measurements of the sides; what prints their table; the figures whose ratios, and what else, the JSON has"""


def main(arguments: list[str]) -> int:
    """Run `quill bench`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    action = arguments[0]
    if action not in ACTIONS:
        raise ConfigError(
            f"no benchmark {shown(action)}{nearest(action, ACTIONS)}; choose one of: {', '.join(ACTIONS)}"
        )
    command = parse_command(action, arguments[1:])
    from quillgpt.cli.bench_table import print_json
    from quillgpt.distributed import ranks_from_environment
    from quillgpt.lab.bench.time_to_loss import EvaluationLog, check_reached
    from quillgpt.training.signals import stopping_at_once

    if ranks_from_environment().is_distributed:
        raise ConfigError("quill bench measures one process; leave out torchrun")
    with (
        stopping_at_once("stopped; nothing is kept"),
        tempfile.TemporaryDirectory(prefix="quill-bench-", ignore_cleanup_errors=True) as folder,
        ProgressReporter() as reporter,
    ):
        screen = EvaluationLog(progress_display)
        found, print_table, speeds, more = _measure(command, Path(folder), screen, reporter.show)
    if command.options.json:
        print_json(action, found, speeds, more)
    else:
        print_table(found)
    if action == "time-to-loss":
        sys.stdout.flush()
        check_reached(found, command.options.loss)
    return 0


def _measure(command: Command, folder: Path, screen: "Screen", progress: Callable[[str, int, int], None]) -> Result:
    from quillgpt.cli import bench_table
    from quillgpt.lab.bench import loading, measure, sampling, time_to_loss, training

    options = command.options
    if command.action == "time-to-loss":
        sides, path, loss = _sides_with_data(command, folder), options.text, options.loss
        text = time_to_loss.validation_text(path, folder) if path else None
        runs = time_to_loss.measure_time_to_loss(
            sides, loss=loss, text=text, seeds=options.seeds, folder=folder, screen=screen
        )
        print_table = partial(bench_table.print_time_to_loss, loss=loss, text=path)
        return runs, print_table, ["seconds"], {"loss": loss, "text": path or None}
    plan = measure.Plan(windows=options.windows, seconds=options.seconds, warmup=options.warmup)
    if command.action == "data":
        sides, is_random = _sides_with_data(command, folder), options.random_tokens
        loaders = loading.measure_loading(sides, plan, screen, is_random=is_random, progress=progress)
        return loaders, bench_table.print_loading, ["tokens_per_second"], {}
    traces = trace_files(command)
    if command.action == "train":
        sides = _sides_with_data(command, folder)
        found = training.measure_training(sides, plan, folder, screen, traces=traces, progress=progress)
        return found, bench_table.print_training, ["tokens_per_second"], {"formula": training.FORMULA}
    lengths = {"prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens}
    work = sampling.SamplingWork(samples=options.samples, **lengths)
    models = [model_of(command, side) for side in command.sides]
    texts = sampling.measure_sampling(models, work, plan, folder, traces=traces, progress=progress)
    return texts, bench_table.print_sampling, ["prefill_tokens_per_second", "decode_tokens_per_second"], {}


def _sides_with_data(command: Command, folder: Path) -> list[tuple[str, RunConfig]]:
    """The name and the settings of each side; data that would have to be downloaded first is refused."""
    from quillgpt.lab.bench.loading import check_prepared, with_random_tokens

    sides = [(side.name, settings_of(command, side).config) for side in command.sides]
    if getattr(command.options, "random_tokens", False):
        return [(name, with_random_tokens(config, folder)) for name, config in sides]
    remedy = "; --random-tokens measures without it" if hasattr(command.options, "random_tokens") else ""
    for _, config in sides:
        check_prepared(config, remedy)
    return sides


def model_of(command: Command, side: Contender) -> "SamplingModel":
    """Open the model of one side of `quill bench sample`."""
    from quillgpt.lab.bench.sampling import open_for_sampling

    source = side.source
    is_recipe = source in recipe_names() or source in RECIPES or source.endswith(".toml")
    own, flags = split_flags(side.flags, {"quantize": str})  # sides can differ in it, but no run has this setting
    quantize = own[-1].rpartition("=")[2] if own else command.options.quantize
    settings = settings_of(command, replace(side, source=source if is_recipe else "debug", flags=flags))
    valid, reason = {*SAMPLING_FLAGS}, f"{source} is a model; valid are"
    if is_recipe:
        valid |= {name for name, group in group_of().items() if group == "model"} | {"tokenizer"}
        reason = "nothing is trained; valid are the shape of the model and"
    for name, origin in settings.origins.items():
        if origin.startswith("flag") and name not in valid:
            flags_of_sampling = ", ".join(f"--{one}" for one in (*SAMPLING_FLAGS, "quantize"))
            raise ConfigError(f"--{name.replace('_', '-')}: {reason} {flags_of_sampling}")
    return open_for_sampling(side.name, source, settings.config, quantize, is_recipe=is_recipe)


def trace_files(command: Command) -> list[Path]:
    """The file of each side's trace; empty without --profile."""
    from quillgpt import files

    trace = command.options.trace
    if not command.options.profile:
        if trace != "auto":
            raise ConfigError(f"--trace {shown(trace)}: a trace is written with --profile only")
        return []
    if trace == "auto":
        names = [re.sub(r"[^\w.=-]+", "-", side.name).strip("-") for side in command.sides]
        names = [f"{name}-{names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]
        files.make_directory(REPORTS)
        return [REPORTS / f"trace-{command.action}-{name}.json" for name in names]
    path = Path(trace)
    require("trace", trace, path.name != "" and not path.is_dir(), "a file")
    try:
        files.make_directory(path.parent)
    except DiskError as error:
        raise DiskError(str(error).replace("--out", "--trace")) from None
    return [path if i == 0 else path.with_stem(f"{path.stem}-{i + 1}") for i in range(len(command.sides))]


def parse_command(action: str, arguments: Sequence[str]) -> Command:
    """Separate the recipes, the options of the benchmark, and the flags of settings; --help prints and exits."""
    schema = ACTIONS[action]
    sources = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    own, flags = split_flags(arguments[len(sources) :], setting_types(schema))
    help_flag = ["--help"] if {"-h", "--help"} & {*flags} else []
    prog, description = f"quill bench {action} RECIPE ...", f"{schema.__doc__}\n\n{MORE_FLAGS}"
    options, _ = parse(schema, own + help_flag, prog=prog, description=description)
    if not sources:
        known = ", ".join(recipe_names())
        raise ConfigError(f"which recipe? `quill bench {action} RECIPE ...`, where RECIPE is one of {known}, or a file")
    sides = [Contender(name=word, source=word, flags=flags) for word in sources]
    return Command(action=action, options=options, sides=sides + [against(text, sides[0]) for text in options.against])


def split_flags(words: Sequence[str], types: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Separate the flags with these names, and their values, from the other words."""
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


def against(text: str, first: Contender) -> Contender:
    """The side of --against: RECIPE, SETTING=VALUE of the first side, or a recipe followed by settings."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--against {shown(text)}: {error}") from None
    if not words:
        raise ConfigError("--against needs a recipe, or a setting such as dtype=fp32")
    source = first.source if "=" in words[0] else words.pop(0)
    for word in words:
        if "=" not in word:
            raise ConfigError(f"--against {shown(text)}: {shown(word)} has no value; write it as in dtype=fp32")
    flags = [*first.flags, *(f"--{word.removeprefix('--')}" for word in words)]
    return Contender(name=text, source=source, flags=flags)


def settings_of(command: Command, side: Contender) -> Settings:
    """The settings of a side; settings that need a run directory are refused."""
    others = setting_types(ACTIONS[command.action])
    try:
        settings = load_settings([side.source, *side.flags], prog=f"quill bench {command.action}", others=others)
    except QuillError as error:
        if side in command.sides[: len(command.sides) - len(command.options.against)]:
            raise
        raise type(error)(f"--against {shown(side.name)}: {error}") from None
    for name in ("out", "eval_only", "fresh"):
        if settings.origins.get(name, "").startswith("flag"):
            raise ConfigError(f"--{name.replace('_', '-')}: `quill bench` leaves no run behind; leave it out")
    if settings.is_dry_run:
        raise ConfigError("--dry-run is a flag of `quill train`; `quill bench` leaves nothing behind")
    return settings
