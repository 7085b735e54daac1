"""Every attention of the menu on the same text, for the same steps, with the same settings: held-out bits per byte.

    python benchmarks/attention_variants.py                       # all, three seeds; killed? the same line again
    python benchmarks/attention_variants.py --entries power gaussian --seeds 1
    python benchmarks/attention_variants.py --table               # the finished runs as a Markdown table

The demo's data, optimizer and schedule, in a smaller shape and without QK-norm, under which all queries and keys are
equally long and gaussian-normalized is softmax again (`--qk-norm` has it). No entry is tuned: all have the demo's rate.
One thread, so that other work on the machine changes the seconds and not the result. Each finished run is a line in
benchmarks/results/attention_variants.jsonl; a run whose loss stops being finite is a line too.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quillgpt import files, load_recipe
from quillgpt.config import RunConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import NonFiniteError, QuillError
from quillgpt.hardware import available_cores, cpu_name
from quillgpt.model.attention import ATTENTION, find_attention
from quillgpt.run_dir import read_metrics
from quillgpt.train.loop import train
from quillgpt.train.open_data import open_data
from quillgpt.train.progress import Quiet

RESULTS = Path(__file__).parent / "results" / "attention_variants.jsonl"
SEEDS = (1, 2, 3)
STEPS = 600  # about 30 seconds for the slowest entry on one quiet core
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 128, "context_length": 128}  # heads of 64 channels, as in GPT-2
BATCH = {"batch_size": 8, "batch_tokens": 1024}  # 8 sequences * 128 tokens

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is the same for every entry of a table; rows of another one are left alone."""

    steps: int = STEPS
    qk_norm: bool = False
    threads: int = 1
    dtype: str = "bf16"

    def config(self, entry: str, seed: int, out: Path) -> RunConfig:
        """The settings of one run."""
        return load_recipe(
            "python",
            attention=entry,
            seed=seed,
            out=str(out),
            minutes=0.0,
            steps=self.steps,
            qk_norm=self.qk_norm,
            threads=self.threads,
            dtype=self.dtype,
            device="cpu",
            compile="off",
            eval_every=0,
            save_every=0,
            log_every=max(1, self.steps // 10),
            **SHAPE,
            **BATCH,
        )

    def holds(self, row: Row) -> bool:
        """Whether a row belongs to this comparison."""
        return row.get("comparison") == vars(self) | SHAPE | BATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", nargs="+", default=list(ATTENTION), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--qk-norm", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the finished runs and train nothing")
    options = parser.parse_args()
    comparison = Comparison(steps=options.steps, qk_norm=options.qk_norm, threads=options.threads, dtype=options.dtype)
    try:
        if not options.table:
            data = open_data(
                comparison.config("softmax", 1, Path("runs")), Ranks(), Quiet()
            )  # not in the first run's time
            print(f"{cpu_name()}, {available_cores()} cores; data in {data.directory}/", flush=True)
            run_missing(comparison, options.entries, options.seeds, options.results)
        rows = read_metrics(options.results)
        print(table(row for row in rows if comparison.holds(row)))
        if others := sum(not comparison.holds(row) for row in rows):
            print(f"\n{others} rows of other comparisons in {options.results} are not shown")
    except QuillError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run_missing(comparison: Comparison, entries: list[str], seeds: list[int], results: Path) -> None:
    """Train what has no row yet; seed by seed, so that a table of one seed is whole before the next begins."""
    for entry in entries:
        find_attention(entry)
    files.make_directory(results.parent)
    wanted = [(entry, seed) for seed in seeds for entry in entries]
    for number, (entry, seed) in enumerate(wanted, start=1):
        if (entry, seed) in finished(comparison, results):
            continue
        row = run(comparison, entry, seed)
        append(results, row)
        outcome = row["failure"] or f"{row['bits_per_byte']:.4f} bits per byte"
        print(f"{number}/{len(wanted)}  {entry}, seed {seed}: {outcome}, {row['seconds']:.1f} s", flush=True)


def finished(comparison: Comparison, results: Path) -> set[tuple[str, int]]:
    """The runs that have a row; read anew each time, because another process may be adding to it."""
    return {(row["entry"], row["seed"]) for row in read_metrics(results) if comparison.holds(row)}


def append(results: Path, row: Row) -> None:
    """Add a row, on a line of its own even if a killed process left half a line."""
    content = results.read_bytes() if results.exists() else b""
    is_torn = content != b"" and not content.endswith(b"\n")
    files.append_line(results, ("\n" if is_torn else "") + json.dumps(row, allow_nan=False))


def run(comparison: Comparison, entry: str, seed: int) -> Row:
    """One row: train in a directory that is then deleted, and keep the result, or why there is none."""
    row: Row = {
        "entry": entry,
        "seed": seed,
        "bits_per_byte": None,
        "loss": None,
        "standard_error": None,
        "failure": "",
    }
    with tempfile.TemporaryDirectory() as folder:
        started, started_computing = time.perf_counter(), time.process_time()
        try:
            outcome = train(comparison.config(entry, seed, Path(folder) / "run"))
            row["bits_per_byte"] = outcome.held_out.bits_per_byte
            row["loss"] = outcome.held_out.loss
            row["standard_error"] = outcome.held_out.standard_error
        except NonFiniteError as error:
            row["failure"] = str(error)
        row["seconds"] = round(time.perf_counter() - started, 2)
        row["cpu_seconds"] = round(time.process_time() - started_computing, 2)
        row["last_look"] = last_look(Path(folder) / "run" / "metrics.jsonl")
    return row | {
        "comparison": vars(comparison) | SHAPE | BATCH,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": cpu_name(),
    }


def last_look(metrics: Path) -> dict[str, Any]:
    """The attention's own statistics in the last line of metrics, a number for each layer."""
    lines = read_metrics(metrics)
    return {name: value for name, value in lines[-1].items() if isinstance(value, list)} if lines else {}


def table(rows: Iterable[Row]) -> str:
    """Markdown, best mean first; entries of which no run stayed finite come last."""
    by_entry: dict[str, list[Row]] = {}
    for row in rows:
        by_entry.setdefault(row["entry"], []).append(row)
    summaries = [summary(entry, rows) for entry, rows in by_entry.items()]
    heading = ("entry", "bits per byte", "± over seeds", "min", "max", "seconds", "n", "diverged")
    lines = [heading, tuple("---" for _ in heading), *(cells for _, cells in sorted(summaries))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary(entry: str, rows: list[Row]) -> tuple[float, tuple[str, ...]]:
    """What an entry is sorted by, and its cells: mean and standard deviation (n - 1) of the finite runs."""
    bits = [row["bits_per_byte"] for row in rows if row["bits_per_byte"] is not None]
    seconds = f"{statistics.median(row['seconds'] for row in rows):.1f}"
    counts = (seconds, str(len(rows)), str(len(rows) - len(bits)))
    if not bits:
        return float("inf"), (entry, "", "", "", "", *counts)
    spread = f"{statistics.stdev(bits):.4f}" if len(bits) > 1 else ""
    mean = statistics.fmean(bits)
    return mean, (entry, f"{mean:.4f}", spread, f"{min(bits):.4f}", f"{max(bits):.4f}", *counts)


if __name__ == "__main__":
    main()
