# ruff: noqa: E402
"""Shared by the scripts: command line, measurements in turns, finished runs as lines of a file, intervals.

Import it before torch, so that OpenMP threads wait as they do under `quill`. `finish_missing` trains only the runs that
have no line in the file yet, so a killed script continues.
"""

from quillgpt.openmp import spin_briefly

spin_briefly()

import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import torch
import tyro
from scipy import stats

from quillgpt import files, load_recipe
from quillgpt.config import RunConfig, Scalar, flatten, updated
from quillgpt.distributed import Ranks
from quillgpt.errors import NonFiniteError, QuillError
from quillgpt.run_dir import read_metrics
from quillgpt.runtime import available_cores, cpu_name
from quillgpt.training.loop import train
from quillgpt.training.screen import Screen
from quillgpt.training.setup import Data, open_data

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
Settings = Mapping[str, Scalar]
Clock = Callable[[], float]
Work = Callable[[], object]

NOTHING_KEPT: Settings = {"eval_every": 0, "eval_iters": 0, "save_every": 0, "sample_every": 0, "log_every": 10}
ONE_THREAD: Settings = {"threads": 1, "device": "cpu", "compile": "off"}
PLACES = ("out", "path", "data")  # settings that are paths of a machine; no row has them
FLAGS = (tyro.conf.OmitArgPrefixes,)


def run_script(description: str, main: Callable[..., None] | Mapping[str, Callable[..., None]]) -> None:
    """Call the function, or the one named on the command line, with its parameters as flags."""
    try:
        if callable(main):
            tyro.cli(main, description=description, config=FLAGS)
        else:
            tyro.extras.subcommand_cli_from_dict(dict(main), description=description, config=FLAGS)
    except QuillError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def print_machine(threads: int = 0, more: str = "") -> None:
    """Print the machine and the commit; set the number of threads, unless it is 0."""
    if threads:
        torch.set_num_threads(threads)
    used = f"{threads} of " if threads else ""
    line = f"{cpu_name()}, {used}{available_cores()} cores, torch {torch.__version__}, commit {commit()}"
    print(f"{line}{', ' if more else ''}{more}", flush=True)


def commit(*exclude: str) -> str:
    """The commit, with "-dirty" if src has changed since; exclude: patterns of files to ignore."""
    git = ["git", "-C", str(Path(__file__).parent)]
    name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    changes = [*git, "status", "--porcelain", "--", ":/src", *(f":(exclude,top){pattern}" for pattern in exclude)]
    is_dirty = subprocess.run(changes, capture_output=True, text=True).stdout != ""
    return f"{name or 'unknown'}{'-dirty' if is_dirty else ''}"


def provenance() -> Row:
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"commit": commit(), **versions, "processor": cpu_name()}


def seconds_of(work: Work, clock: Clock = time.perf_counter) -> float:
    started = clock()
    work()
    return clock() - started


def in_turns(works: Mapping[str, Work], rounds: int, clock: Clock = time.perf_counter) -> dict[str, list[float]]:
    """Seconds of each function in each round; they take turns, so that other work disturbs all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(seconds_of(work, clock))
    return seconds


def speedup(slow: Sequence[float], fast: Sequence[float]) -> str:
    """How many times as fast the second is: the median over rounds, and the range."""
    ratios = sorted(one / other for one, other in zip(slow, fast, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def resident_bytes(field: str = "VmRSS") -> int:
    """Memory of this process on Linux; VmRSS: now, VmHWM: the peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def in_new_process(work: Callable[..., Any], *arguments: object) -> Any:
    """The result of a module's function, called in a new process with its own memory."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half of its 95 % interval by Student's t; NaN for one value."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * error


def with_interval(values: Sequence[float], form: str = ".4f") -> str:
    """`mean ± half`, without the half for one value."""
    mean, half = interval(values)
    return format(mean, form) if math.isnan(half) else f"{mean:{form}} ± {half:{form}}"


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def append(results: Path, row: Row) -> None:
    """Append a row, on a new line even if a killed process left half a line."""
    files.make_directory(results.parent)
    content = results.read_bytes() if results.exists() else b""
    is_torn = content != b"" and not content.endswith(b"\n")
    files.append_line(results, ("\n" if is_torn else "") + json.dumps(row, allow_nan=False))


def data_of(config: RunConfig) -> Data:
    """The data of a run, prepared if it is missing."""
    return open_data(config, None, Ranks(), Screen())


def rows_in(file: Path) -> list[Row]:
    """The lines of a file of JSON lines, without a torn one."""
    return cast(list[Row], read_metrics(file))


def last_line(run: str | Path) -> Row:
    return (rows_in(Path(run) / "metrics.jsonl") or [{}])[-1]


def one_run(name: str, recipe: str, settings: Settings) -> Row:
    """Train a recipe with changed settings in a temporary directory; return the row. Diverged: `loss` is None."""
    row: Row = {"run": name, "recipe": recipe, "loss": None, "bits_per_byte": None}
    row["settings"] = {name: value for name, value in settings.items() if name not in PLACES}
    row["experiment"] = experiment(load_recipe(recipe, **settings))
    with tempfile.TemporaryDirectory() as folder:
        started, started_computing = time.perf_counter(), time.process_time()
        try:
            outcome = train(load_recipe(recipe, **{**settings, "out": f"{folder}/run"}))
            row |= {"loss": outcome.validation.loss, "bits_per_byte": outcome.validation.bits_per_byte}
        except NonFiniteError as error:
            row["failure"] = str(error)
        last = last_line(f"{folder}/run")
        row |= {"steps": last.get("step"), "tokens": last.get("tokens"), "step_seconds": last.get("elapsed_seconds")}
        row["cpu_seconds"] = round(time.process_time() - started_computing, 1)
        row["seconds"] = round(time.perf_counter() - started, 1)
    return row | provenance()


def in_processes(
    work: Callable[..., Row], calls: Sequence[tuple], results: Path, processes: int, outcome: Callable[[Row], str]
) -> None:
    """Call the function with each tuple of arguments in its own process; append the rows, print their outcome."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        running = [pool.submit(work, *arguments) for arguments in calls]
        for number, done in enumerate(as_completed(running), start=1):
            row = done.result()
            append(results, row)
            print(f"  {number}/{len(calls)}  {outcome(row)}", flush=True)


def finish_missing(results: Path, recipe: str, runs: Mapping[str, Settings], *, processes: int) -> dict[str, Row]:
    """The rows of the runs, by name; a run without a row of the same recipe and settings is trained first.

    processes: number of concurrent runs; 0 trains nothing.
    """
    found = rows_of(results, recipe, runs)
    missing = [name for name in runs if name not in found] if processes else []
    print(f"{len(found)} of {len(runs)} runs are in {results.name}, {len(missing)} to do", flush=True)
    if missing:
        data_of(load_recipe(recipe, **runs[missing[0]]))  # once, not in each process

        def outcome(row: Row) -> str:
            result = row.get("failure") or f"loss {row['loss']:.4f}, {row['bits_per_byte']:.4f} bits per byte"
            return f"{row['run']}: {result}, {row['cpu_seconds']} s of CPU"

        in_processes(one_run, [(name, recipe, runs[name]) for name in missing], results, processes, outcome)
    return rows_of(results, recipe, runs)


def rows_of(results: Path, recipe: str, runs: Mapping[str, Settings]) -> dict[str, Row]:
    """The rows of the runs; all settings must be equal, so a changed recipe has no rows. Of two rows, the later."""
    defaults = experiment(RunConfig())
    rows = [(defaults | row["experiment"], row) for row in rows_in(results) if "experiment" in row]
    experiments = {name: experiment(load_recipe(recipe, **settings)) for name, settings in runs.items()}
    return {name: row for name, settings in experiments.items() for found, row in rows if found == settings}


def experiment(config: RunConfig) -> Row:
    """The settings that a result depends on; a setting that is newer than a row has its default in it."""
    return {name: value for name, value in flatten(config).items() if name not in PLACES}


def steps_in(cpu_seconds: float, config: RunConfig, *, trial_steps: int = 30) -> int:
    """Steps that take about cpu_seconds with one thread, by the fastest five steps of a short trial."""
    trial = {**NOTHING_KEPT, **ONE_THREAD, "steps": trial_steps, "minutes": 0.0, "eval_tokens": 2000, "log_every": 5}
    with tempfile.TemporaryDirectory() as folder:
        train(updated(config, {**trial, "out": f"{folder}/run"}, where="trial"))
        lines = rows_in(Path(folder) / "run" / "metrics.jsonl")
    seconds = [line["elapsed_seconds"] for line in lines]
    return max(1, int(cpu_seconds / min((later - earlier) / 5 for earlier, later in itertools.pairwise(seconds))))
