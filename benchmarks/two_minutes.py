"""Two minutes of training on two cores against file compressors, on the same held-out Python source.

    python benchmarks/two_minutes.py                                    # modern-python, three seeds
    python benchmarks/two_minutes.py --recipes modern-python python     # in turns, seed by seed
    python benchmarks/two_minutes.py --flags "--n-layer 5" --minutes 2

Held-out bits per byte beside gzip -9 and xz -9e of the same text, which is the whole held-out split as one stream. The
minutes are of training and its evaluations; measuring the speed comes before, and the seconds of all are printed. The
goal is at most 0.92 of xz -9e. Each finished run is a line in benchmarks/results/two_minutes.jsonl, for the record:
nothing is taken from there, because a result of minutes belongs to the machine and the hour.
"""

import argparse
import itertools
import json
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import as_quill  # noqa: F401  (first)
from finished_runs import RESULTS, Row, append, data_of, interval, machine, provenance

from quillgpt.cli.demo import compressor_figures
from quillgpt.cli.settings import load_settings
from quillgpt.config import RunConfig, updated
from quillgpt.errors import QuillError
from quillgpt.hardware import available_cores
from quillgpt.run_dir import read_metrics
from quillgpt.train.loop import train

GOAL, AMBITION = 0.92, 0.85
XZ = "xz -9e"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["modern-python"], metavar="RECIPE")
    parser.add_argument("--flags", default="", help="of every recipe, as for quill train")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--results", type=Path, default=RESULTS / "two_minutes.jsonl")
    options = parser.parse_args()
    print(f"{machine()}, {available_cores()} cores, {options.minutes:g} minutes a run", flush=True)
    try:
        configs = {name: settings_of(name, options) for name in options.recipes}
        rows: dict[str, list[Row]] = {name: [] for name in configs}
        for seed, (name, config) in itertools.product(options.seeds, configs.items()):
            row = timed(name, updated(config, {"seed": seed}, where=name), options)
            append(options.results, row)
            rows[name].append(row)
            print(told(row), flush=True)
        for name, finished in rows.items():
            print(summary(name, finished))
    except QuillError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def settings_of(recipe: str, options: argparse.Namespace) -> RunConfig:
    """The recipe for so many minutes, evaluated on the whole held-out split at its end."""
    config = load_settings([recipe, "--minutes", str(options.minutes), *shlex.split(options.flags)]).config
    kept = {"eval_every": 0, "eval_iters": 0, "eval_tokens": 1 << 40, "save_every": 0, "sample_every": 0}
    return updated(config, kept, where=recipe)


def timed(recipe: str, config: RunConfig, options: argparse.Namespace) -> Row:
    """One run, in a directory that is then deleted."""
    compressed = compressor_figures(data_of(config))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(updated(config, {"out": f"{folder}/run"}, where=recipe))
        last = read_metrics(outcome.run / "metrics.jsonl")[-1]
        environment = json.loads((outcome.run / "environment.json").read_text(encoding="utf-8"))
    bits = outcome.held_out.bits_per_byte
    return {
        "recipe": f"{recipe} {options.flags}".strip(),
        "minutes": options.minutes,
        "seed": config.train.seed,
        "bits_per_byte": bits,
        "of_xz": bits / compressed[XZ],
        "of_gzip": bits / compressed["gzip -9"],
        "compressors": compressed,
        "held_out_bytes": outcome.held_out.bytes,
        "steps": outcome.step,
        "tokens": last["tokens"],
        "step_seconds": last["elapsed_seconds"],
        "seconds": round(time.perf_counter() - started, 1),
        "threads": environment["choices"]["threads"],
        "dtype": environment["choices"]["dtype"],
    } | provenance()


def told(row: Row) -> str:
    """A finished run on one line."""
    trained = f"{row['steps']:,} steps, {row['tokens']:,} tokens in {row['step_seconds']:.1f} s of steps"
    return (
        f"{row['recipe']}, seed {row['seed']}: {row['bits_per_byte']:.4f} bits per byte, {row['of_xz']:.3f} x {XZ}, "
        f"{row['of_gzip']:.3f} x gzip -9; {trained}, {row['seconds']:.1f} s in all"
    )


def summary(recipe: str, rows: list[Row]) -> str:
    """Mean over the seeds with Student's 95 % interval, and the goal."""
    mean, half = interval([row["of_xz"] for row in rows])
    bits = statistics.fmean(row["bits_per_byte"] for row in rows)
    verdict = "met" if mean <= GOAL else "NOT met"
    ambition = "met" if mean <= AMBITION else "not met"
    found = f"{recipe}: {bits:.4f} bits per byte, {mean:.3f} ± {half:.3f} x {XZ}"
    return f"{found}; goal {GOAL}: {verdict}; ambition {AMBITION}: {ambition}"


if __name__ == "__main__":
    main()
