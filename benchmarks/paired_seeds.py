"""Do two settings share the luck of a seed? If so, a difference taken seed by seed has a narrower interval.

    python benchmarks/paired_seeds.py                    # 9 settings, 12 seeds, about 4 minutes on one core
    python benchmarks/paired_seeds.py --table FILE       # train nothing; from lines with entry, seed and loss

For every pair of settings: the correlation of their held-out losses over the seeds, and how wide the paired 95 %
interval is beside Welch's when only n of the seeds are there, over `SUBSETS` draws of n. `quill compare` takes its rule
from this (docs/compare.md). Each run is a line in benchmarks/results/paired_seeds.jsonl; killed, the same line goes on.
"""

import argparse
import itertools
import json
import platform
import random
import statistics
import tempfile
from pathlib import Path

import torch

from quillgpt import files, load_recipe
from quillgpt.compare.difference import Sample, paired, welch
from quillgpt.hardware import cpu_name
from quillgpt.run_dir import read_metrics
from quillgpt.train.loop import train

RESULTS = Path(__file__).parent / "results" / "paired_seeds.jsonl"
SEEDS = range(1, 13)
SUBSETS = 100
COMMON = {
    "n_embd": 32,
    "steps": 150,
    "documents": 60,
    "device": "cpu",
    "dtype": "fp32",
    "threads": 1,
    "eval_every": 0,
    "save_every": 0,
    "log_every": 1000,
}
ENTRIES: dict[str, dict[str, bool | int | float | str]] = {
    "base": {},
    "lr 2e-3": {"lr": 2e-3},
    "beta2 0.99": {"beta2": 0.99},
    "3 layers": {"n_layer": 3},
    "gaussian-normalized": {"attention": "gaussian-normalized"},
    "relu2": {"mlp": "relu2"},
    "rmsnorm": {"norm": "rmsnorm"},
    "batch 12, 200 steps": {"batch_size": 12, "steps": 200},
    "dropout 0.1": {"dropout": 0.1},
}
"""what each setting changes of the recipe `debug` with `COMMON`"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, metavar="FILE", help="train nothing")
    options = parser.parse_args()
    if options.table is None:
        run_missing()
    print(table(options.table or RESULTS))


def run_missing() -> None:
    """Train what has no line yet."""
    there = {(row["entry"], row["seed"]) for row in read_metrics(RESULTS)}
    files.make_directory(RESULTS.parent)
    for seed, entry in itertools.product(SEEDS, ENTRIES):
        if (entry, seed) in there:
            continue
        with tempfile.TemporaryDirectory() as folder:
            settings = COMMON | ENTRIES[entry]
            loss = train(load_recipe("debug", **settings, seed=seed, out=f"{folder}/run")).held_out.loss
        row = {"entry": entry, "seed": seed, "loss": loss, "torch": torch.__version__, "processor": cpu_name()}
        files.append_line(RESULTS, json.dumps(row | {"python": platform.python_version()}))
        print(f"{entry}, seed {seed}: {loss:.4f}", flush=True)


def table(results: Path) -> str:
    """Correlations over all pairs of settings, and paired beside Welch's width for each n, in Markdown."""
    losses: dict[str, dict[int, float]] = {}
    for row in read_metrics(results):
        losses.setdefault(str(row["entry"]), {})[int(str(row["seed"]))] = float(str(row["loss"]))
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in losses.values())))
    pairs = list(itertools.combinations(losses, 2))
    correlations = [
        statistics.correlation([losses[a][s] for s in seeds], [losses[b][s] for s in seeds]) for a, b in pairs
    ]
    lines = [
        f"{len(losses)} settings, {len(pairs)} pairs, {len(seeds)} seeds",
        f"correlation over seeds: median {statistics.median(correlations):.2f}, "
        f"{min(correlations):.2f} to {max(correlations):.2f}",
        "",
        "| n | paired / Welch's width, median over pairs | least | most | pairs in which the paired is narrower |",
        "|---|---|---|---|---|",
    ]
    for n in (2, 3, 4, 5, 8):
        if n <= len(seeds):
            ratios = [width_ratio(losses[a], losses[b], seeds, n) for a, b in pairs]
            narrower = sum(ratio < 1 for ratio in ratios)
            figures = (statistics.median(ratios), min(ratios), max(ratios))
            lines.append(f"| {n} | {' | '.join(f'{figure:.2f}' for figure in figures)} | {narrower} of {len(pairs)} |")
    return "\n".join(lines)


def width_ratio(baseline: dict[int, float], other: dict[int, float], seeds: list[int], n: int) -> float:
    """The mean width of the paired interval over that of Welch's, when n of the seeds are drawn."""
    draw = random.Random(n)
    widths = [0.0, 0.0]
    for _ in range(SUBSETS):
        chosen = draw.sample(seeds, n)
        samples = [Sample(by_seed={seed: losses[seed] for seed in chosen}) for losses in (baseline, other)]
        for place, method in enumerate((paired, welch)):
            interval = method(*samples)
            widths[place] += interval.high - interval.low
    return widths[0] / widths[1]


if __name__ == "__main__":
    main()
