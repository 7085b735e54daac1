"""What the benchmarks that train share: a run in a process of its own, its result as a line of a file, and spreads.

A script asks `finish_missing` for what it needs; runs that have a line are not repeated, so a killed script goes on.
"""

import itertools
import json
import math
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from quillgpt import files, load_recipe
from quillgpt.config import RunConfig, Scalar, flatten, updated
from quillgpt.data.directory import data_directory
from quillgpt.distributed import Ranks
from quillgpt.errors import NonFiniteError
from quillgpt.hardware import cpu_name
from quillgpt.run_dir import read_metrics
from quillgpt.student_t import two_sided_quantile
from quillgpt.train.loop import train
from quillgpt.train.open_data import open_data
from quillgpt.train.progress import Quiet

RESULTS = Path(__file__).parent / "results"
KEPT_NOTHING = {"eval_every": 0, "eval_iters": 0, "save_every": 0, "sample_every": 0, "log_every": 10}
OF_A_MACHINE = ("out", "path", "data")
"""settings that say where something lies; no row has them"""
ONE_THREAD = {"threads": 1, "device": "cpu", "compile": "off"}

Row = dict[str, Any]
Settings = Mapping[str, Scalar]


def one_run(name: str, recipe: str, settings: Settings) -> Row:
    """Train a recipe with settings changed, in a directory that is then deleted; what came of it.

    `name` says which run of the script's it is. A loss that stops being finite is a result too: `loss` is None.
    """
    row: Row = {"run": name, "recipe": recipe, "loss": None, "bits_per_byte": None}
    row["settings"] = {name: value for name, value in settings.items() if name not in OF_A_MACHINE}
    row["experiment"] = experiment(load_recipe(recipe, **settings))
    with tempfile.TemporaryDirectory() as folder:
        started, started_computing = time.perf_counter(), time.process_time()
        config = updated(load_recipe(recipe, **settings), {"out": f"{folder}/run"}, where=name)
        try:
            outcome = train(config)
            row |= {"loss": outcome.held_out.loss, "bits_per_byte": outcome.held_out.bits_per_byte}
        except NonFiniteError as error:
            row["failure"] = str(error)
        lines = read_metrics(Path(folder) / "run" / "metrics.jsonl")
        last = lines[-1] if lines else {}
        row |= {"steps": last.get("step"), "tokens": last.get("tokens"), "step_seconds": last.get("elapsed_seconds")}
        row["cpu_seconds"] = round(time.process_time() - started_computing, 1)
        row["seconds"] = round(time.perf_counter() - started, 1)
    return row | provenance()


def provenance() -> Row:
    """Where and with what a row was made."""
    return {
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": cpu_name(),
    }


def commit() -> str:
    """The commit of the package, marked where it was changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    changes = subprocess.run([*git, "status", "--porcelain", "--", ":/src"], capture_output=True, text=True).stdout
    return f"{name or 'unknown'}{'-dirty' if changes else ''}"


def finish_missing(results: Path, recipe: str, wanted: Mapping[str, Settings], *, processes: int) -> dict[str, Row]:
    """The rows of the wanted runs, by name; what has no row of the same recipe and settings is trained and appended."""
    files.make_directory(results.parent)
    found = rows_of(results, recipe, wanted)
    missing = [name for name in wanted if name not in found]
    print(f"{len(found)} of {len(wanted)} runs are in {results.name}, {len(missing)} to do", flush=True)
    if missing:
        open_data(load_recipe(recipe, **wanted[missing[0]]), None, Ranks(), Quiet())  # once, not in each process
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        running = [pool.submit(one_run, name, recipe, wanted[name]) for name in missing]
        for number, done in enumerate(as_completed(running), start=1):
            row = done.result()
            append(results, row)
            came = row.get("failure") or f"loss {row['loss']:.4f}, {row['bits_per_byte']:.4f} bits per byte"
            print(f"  {number}/{len(missing)}  {row['run']}: {came}, {row['cpu_seconds']} s of CPU", flush=True)
    return rows_of(results, recipe, wanted)


def rows_of(results: Path, recipe: str, wanted: Mapping[str, Settings]) -> dict[str, Row]:
    """The rows of the wanted runs. Every setting counts, so that a changed recipe is another; of two, the later."""
    usual = experiment(RunConfig())
    rows = [(usual | dict(row["experiment"]), row) for row in read_metrics(results) if "experiment" in row]
    asked = {name: experiment(load_recipe(recipe, **settings)) for name, settings in wanted.items()}
    return {name: row for name, settings in asked.items() for found, row in rows if found == settings}


def experiment(config: RunConfig) -> Row:
    """The settings that a result hangs on; one that is younger than a row had its default then."""
    return {name: value for name, value in flatten(config).items() if name not in OF_A_MACHINE}


def append(results: Path, row: Row) -> None:
    """Add a row, on a line of its own even if a killed process left half a line."""
    content = results.read_bytes() if results.exists() else b""
    is_torn = content != b"" and not content.endswith(b"\n")
    files.append_line(results, ("\n" if is_torn else "") + json.dumps(row, allow_nan=False))


def steps_in(cpu_seconds: float, recipe: str, settings: Settings, *, trial_steps: int = 30) -> int:
    """Steps that take about so many seconds of one thread, from the fastest stretch of a short trial."""
    trial = dict(settings) | KEPT_NOTHING | ONE_THREAD | {"steps": trial_steps, "eval_tokens": 2000, "log_every": 5}
    with tempfile.TemporaryDirectory() as folder:
        config = updated(load_recipe(recipe, **trial), {"out": f"{folder}/run"}, where="trial")
        train(config)
        lines = read_metrics(Path(folder) / "run" / "metrics.jsonl")
    seconds = [float(str(line["elapsed_seconds"])) for line in lines]
    return max(1, int(cpu_seconds / min((later - earlier) / 5 for earlier, later in itertools.pairwise(seconds))))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the 95 % interval of it by Student's t; the half is NaN for one value."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), two_sided_quantile(0.95, len(values) - 1) * error


def with_interval(values: Sequence[float], form: Callable[[float], str] = "{:.4f}".format) -> str:
    """`mean ± half`, the half left out for one value."""
    mean, half = interval(values)
    return form(mean) if math.isnan(half) else f"{form(mean)} ± {form(half)}"


def machine() -> str:
    """One line that says where this runs."""
    return f"{cpu_name()}, torch {torch.__version__}, commit {commit()}"


def data_of(config: RunConfig) -> Path:
    """The run's prepared data, made where it is missing."""
    open_data(config, None, Ranks(), Quiet())
    return data_directory(config.data, config.model.vocab_size)
