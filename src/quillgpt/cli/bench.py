"""`quill bench train|sample|data|time-to-loss RECIPE ...`: what training, sampling and loading cost on this machine.

The table, or the JSON, goes to standard output and everything on the way to it to standard error. What is measured lies
in a temporary directory, which is gone afterwards, however it ends.
"""

import contextlib
import json
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quillgpt.cli.bench_options import ACTIONS, Command, settings_of, taken_apart
from quillgpt.cli.bench_sides import sampled
from quillgpt.cli.bench_status import Status, temporary
from quillgpt.config import RunConfig
from quillgpt.errors import CheckError, ConfigError, DiskError, nearest, require, shown

if TYPE_CHECKING:
    from quillgpt.bench.windows import Plan

REPORTS = Path("reports")

USAGE = """\
usage: quill bench train RECIPE ...          tokens/s, MFU, memory, and where a step's time goes
       quill bench sample RECIPE|MODEL ...   prefill and decode, tokens/s
       quill bench data RECIPE ...           batches out of prepared tokens, tokens out of text
       quill bench time-to-loss RECIPE ...   seconds of training until a held-out loss is reached

Several recipes, or --against RECIPE or --against SETTING=VALUE, are measured turn by turn in one run, so that whatever
else the machine does disturbs all alike; the ratio to the first is printed with its spread.

  quill bench train python --profile
  quill bench train python --against dtype=fp32
  quill bench sample runs/python --against dtype=bf16 --against quantize=int8
  quill bench time-to-loss shakespeare-char --loss 1.8857 --seeds 3

`quill bench train --help` lists its flags; docs/bench.md says what every number is."""


def main(arguments: list[str]) -> int:
    """Run `quill bench`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    action = arguments[0]
    if action not in ACTIONS:
        known = ", ".join(ACTIONS)
        raise ConfigError(f"no benchmark {shown(action)}{nearest(action, ACTIONS)}; there are {known}")
    command = taken_apart(action, arguments[1:])
    runs = {"train": _train, "sample": _sample, "data": _data, "time-to-loss": _time_to_loss}
    return runs[action](command)


def _train(command: Command) -> int:
    plan, traces = _plan(command), trace_files(command)
    sides = _sides_with_data(command)
    from quillgpt.bench.as_json import training_json
    from quillgpt.bench.random_tokens import with_random_tokens
    from quillgpt.bench.training import measure_training
    from quillgpt.cli.bench_table import print_training

    with temporary() as folder, Status() as status:
        if command.options.random_tokens:
            sides = [(name, with_random_tokens(config, folder)) for name, config in sides]
        found = measure_training(sides, plan, folder, status, traces=traces, progress=status.show)
    if command.options.json:
        print_json(training_json(found))
    else:
        print_training(found)
    return 0


def _data(command: Command) -> int:
    plan = _plan(command)
    sides = _sides_with_data(command)
    from quillgpt.bench.as_json import loading_json
    from quillgpt.bench.loading import measure_loading
    from quillgpt.bench.random_tokens import with_random_tokens
    from quillgpt.cli.bench_table import print_loading

    is_random = command.options.random_tokens
    with temporary() as folder, Status() as status:
        if is_random:
            sides = [(name, with_random_tokens(config, folder)) for name, config in sides]
        found = measure_loading(sides, plan, status, is_random=is_random, progress=status.show)
    if command.options.json:
        print_json(loading_json(found))
    else:
        print_loading(found)
    return 0


def _sample(command: Command) -> int:
    plan, traces, options = _plan(command), trace_files(command), command.options
    from quillgpt.bench.as_json import sampling_json
    from quillgpt.bench.machine import nothing_compiled_before
    from quillgpt.bench.sampling import Task, measure_sampling
    from quillgpt.cli.bench_table import print_sampling

    task = Task(samples=options.samples, prompt_tokens=options.prompt_tokens, new_tokens=options.new_tokens)
    _refuse_ranks()
    with temporary() as folder, Status() as status:
        sides = [sampled(command, side) for side in command.sides]
        is_compiled = any(side.is_compiled for side in sides)
        with nothing_compiled_before(folder) if is_compiled else contextlib.nullcontext():
            found = measure_sampling(sides, task, plan, traces=traces, progress=status.show)
    if options.json:
        print_json(sampling_json(found))
    else:
        print_sampling(found)
    return 0


def _time_to_loss(command: Command) -> int:
    options = command.options
    require(
        "loss", options.loss, math.isfinite(options.loss) and options.loss > 0, "--loss with nats per token, above 0"
    )
    require("seeds", options.seeds, 1 <= options.seeds <= 1000, "1 to 1,000")
    sides = [(side.name, settings_of(command, side).config) for side in command.sides]
    _refuse_ranks()
    from quillgpt.bench.as_json import reached_json
    from quillgpt.bench.random_tokens import check_at_hand
    from quillgpt.bench.time_to_loss import judging_text, times_to_loss
    from quillgpt.cli.bench_table import print_reached

    for _, config in sides:
        check_at_hand(config, "")
    with temporary() as folder, Status() as status:
        text = judging_text(options.text, folder) if options.text else None
        found = times_to_loss(sides, loss=options.loss, text=text, seeds=options.seeds, folder=folder, screen=status)
    if options.json:
        print_json(reached_json(found, options.loss, options.text))
    else:
        print_reached(found, options.loss, options.text)
    sys.stdout.flush()
    missed = [run for runs in found for run in runs if not run.reached]
    if missed:
        losses = [run.loss for run in missed if math.isfinite(run.loss)]
        nearest_one = f" (the nearest at {min(losses):.4f})" if losses else ""
        ended = f"{len(missed)} of {sum(map(len, found))} runs ended above a held-out loss of {options.loss:g}"
        raise CheckError(f"{ended}{nearest_one}; raise --steps, or --loss")
    return 0


def _plan(command: Command) -> "Plan":
    from quillgpt.bench.windows import Plan

    measuring = command.options.measuring
    return Plan(windows=measuring.windows, seconds=measuring.seconds, warmup=measuring.warmup)


def _sides_with_data(command: Command) -> list[tuple[str, RunConfig]]:
    """The settings of each side; data that would have to be fetched first is told now."""
    sides = [(side.name, settings_of(command, side).config) for side in command.sides]
    _refuse_ranks()
    from quillgpt.bench.random_tokens import check_at_hand

    if not command.options.random_tokens:
        for _, config in sides:
            check_at_hand(config, "; --random-tokens measures without it")
    return sides


def _refuse_ranks() -> None:
    from quillgpt.distributed import ranks_from_environment

    if ranks_from_environment().is_parallel:
        raise ConfigError("quill bench measures one process; leave out torchrun")


def trace_files(command: Command) -> list[Path]:
    """Where the trace of each side goes; none where there is to be none."""
    from quillgpt import files

    profiling = command.options.profiling
    if not profiling.profile:
        if profiling.trace != "auto":
            raise ConfigError(f"--trace {shown(profiling.trace)}: there is a trace only with --profile")
        return []
    if profiling.trace == "auto":
        names = [re.sub(r"[^\w.=-]+", "-", side.name).strip("-") for side in command.sides]
        files.make_directory(REPORTS)
        names = [f"{name}-{names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]
        return [REPORTS / f"trace-{command.action}-{name}.json" for name in names]
    path = Path(profiling.trace)
    require("trace", profiling.trace, path.name != "" and not path.is_dir(), "a file")
    try:
        files.make_directory(path.parent)
    except DiskError as error:
        raise DiskError(str(error).replace("--out", "--trace")) from None
    return [path if i == 0 else path.with_stem(f"{path.stem}-{i + 1}") for i in range(len(command.sides))]


def print_json(result: dict[str, Any]) -> None:
    """Print strict JSON: a number that is none would be a bug."""
    print(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False))
