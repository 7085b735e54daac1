"""Ablations: a modern recipe without one of its parts; and the gain of pairing runs by seed.

    python benchmarks/ablations.py leave-one-out modern-python     # 3 seeds, two runs at a time, at most 45 s each
    python benchmarks/ablations.py leave-one-out modern-python --lines muon rotary --seeds 1 2 3 4 5
    python benchmarks/ablations.py leave-one-out modern-python --processes 0   # only the table of the finished runs
    python benchmarks/ablations.py paired-seeds                    # 9 settings, 12 seeds, about 4 minutes on one core

All runs have the same steps, tokens and seeds, one process and one thread each. No replacement is tuned, except that
AdamW replaces Muon at several rates (`RATES_WITHOUT_MUON`). Differences are by seed, with 95 % intervals. Each finished
run is a line in benchmarks/results/; after a kill the same command continues.
"""

import itertools
import random
import statistics
from pathlib import Path

import measuring
import tyro
from measuring import NOTHING_KEPT, ONE_THREAD, RESULTS, Row, Settings, rows_in

from quillgpt import load_recipe
from quillgpt.config import flatten
from quillgpt.errors import DataError
from quillgpt.lab.compare.statistics import FEWEST_PAIRS, Sample, paired, welch

RATES_WITHOUT_MUON = (1e-3, 2e-3, 4e-3, 8e-3)
ADAMW = {"optimizer": "adamw", "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
ADAMW |= {"warmup_steps": 20, "gradient_clip": 1.0}
GPT2S: dict[str, Settings] = {
    "rotary positions": {"position": "learned"},
    "RMSNorm": {"norm": "layernorm"},
    "QK-norm": {"qk_norm": False},
    "ReLU²": {"mlp": "gelu"},
    "no biases": {"bias": True},
    "untied head": {"tied_head": True},
    "embedding norm": {"embedding_norm": False},
    "residual mixing": {"residual": "plain"},
    "value embeddings": {"value_embeddings": False},
    "logit soft-cap": {"logit_softcap": 0.0},
    "zero-initialized outputs": {"initialization": "gpt2"},
    "long linear decay": {"schedule": "cosine"},
    "momentum warm-up": {"momentum_warmup_steps": 0},
    "batch-size ramp": {"batch_ramp": ""},
    **{f"Muon (AdamW, rate {rate:g})": ADAMW | {"lr": rate} for rate in RATES_WITHOUT_MUON},
}
"""each modern part, and the settings of GPT-2's recipe that replace it"""
FULL = "full recipe"

SEEDS, SUBSETS = range(1, 13), 100
COMMON: Settings = {"n_embd": 32, "steps": 150, "documents": 60, "device": "cpu", "dtype": "fp32"}
COMMON = {**COMMON, "threads": 1, "eval_every": 0, "save_every": 0, "log_every": 1000}
VARIATIONS: dict[str, Settings] = {
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
"""what each setting changes in the recipe `debug` with `COMMON`"""


def leave_one_out(
    recipe: tyro.conf.Positional[str],
    lines: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (1, 2, 3),
    seconds: float = 40.0,
    steps: int = 0,
    processes: int = 2,
    path: str = "",
    results: Path | None = None,
) -> None:
    """Train the recipe, and the recipe with one of its parts replaced by GPT-2's, one part at a time.

    Args:
        recipe: a name, or a .toml file
        lines: only the parts whose name contains one of these words
        seconds: approximate length of a run of the full recipe, with one thread
        steps: of a run; 0: by --seconds, or those of the finished runs
        processes: concurrent runs; 0: train nothing
        path: the text, if the recipe would download it
    """
    results = results or RESULTS / f"ablations-{Path(recipe).stem}.jsonl"
    common: Settings = {"path": path} if path else {}
    finished = [row for row in rows_in(results) if row.get("recipe") == recipe]
    if not processes and not finished:
        raise DataError(f"{results}: no runs of {recipe} yet")
    steps = steps or (int(finished[-1]["settings"]["steps"]) if finished else 0)
    steps = steps or measuring.steps_in(seconds, load_recipe(recipe, **common))
    runs = {
        f"{line}, seed {seed}": settings
        for seed in seeds
        for line, settings in lines_of(recipe, steps, seed, common, lines).items()
    }
    measuring.print_machine(more=f"{recipe}, {steps:,} steps, one thread a run")
    print(table(measuring.finish_missing(results, recipe, runs, processes=processes)))


def lines_of(recipe: str, steps: int, seed: int, common: Settings, words: tuple[str, ...]) -> dict[str, Settings]:
    """The settings of each run of a seed: the full recipe, and one for each of its modern parts."""
    own = flatten(load_recipe(recipe))
    fixed: Settings = {**common, **NOTHING_KEPT, **ONE_THREAD, "seed": seed, "steps": steps}
    found: dict[str, Settings] = {FULL: fixed}
    for line, settings in GPT2S.items():
        is_chosen = not words or any(word.lower() in line.lower() for word in words)
        is_modern = own["optimizer"] == "muon" if line.startswith("Muon") or line == "momentum warm-up" else True
        if is_chosen and is_modern and any(own[name] != value for name, value in settings.items()):
            found[line] = {**fixed, **settings}
    return found


def table(rows: dict[str, Row]) -> str:
    """Markdown, the most important part first; loss in bits per byte, lower is better."""
    losses: dict[str, dict[int, float]] = {}
    diverged: dict[str, int] = {}
    for name, row in rows.items():
        line = name.rpartition(", seed ")[0]
        if row["bits_per_byte"] is None:
            diverged[line] = diverged.get(line, 0) + 1
        else:
            losses.setdefault(line, {})[int(row["settings"]["seed"])] = float(row["bits_per_byte"])
    full = Sample(by_seed=losses.pop(FULL, {}))
    by_mean = sorted(losses, key=lambda line: -statistics.fmean(losses[line].values()))
    samples = {f"nothing: the {FULL}": full} | {line: Sample(by_seed=losses[line]) for line in by_mean}
    found = []
    for line, sample in samples.items():
        cells = [line, f"{sample.mean:.4f}", f"{sample.standard_deviation:.4f}"]
        count = diverged.pop(FULL if sample is full else line, 0)
        found.append([*cells, "" if sample is full else difference(full, sample), str(sample.n), str(count)])
    found += [[line, "", "", "", "0", str(count)] for line, count in diverged.items()]
    heading = ["without", "bits per byte", "± over seeds", "difference to the full recipe", "n", "diverged"]
    return measuring.markdown(heading, found)


def difference(full: Sample, sample: Sample) -> str:
    """The increase of the loss without the part: paired by seed with three common seeds or more, else by Welch."""
    shared = sorted(full.by_seed.keys() & sample.by_seed.keys())
    if len(shared) >= FEWEST_PAIRS:
        found = paired(*(Sample(by_seed={seed: one.by_seed[seed] for seed in shared}) for one in (full, sample)))
    elif full.n > 1 and sample.n > 1:
        found = welch(full, sample)
    else:
        return f"{sample.mean - full.mean:+.4f}"
    return f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def paired_seeds(results: Path = RESULTS / "paired_seeds.jsonl", table_only: bool = False) -> None:
    """Do the losses of two settings correlate over seeds? If so, a paired difference has a narrower interval.

    For every pair of settings: the correlation over the seeds, and the width of the paired 95 % interval over that of
    Welch's with n of the seeds, for `SUBSETS` random subsets. `quill compare` takes its rule from this.
    """
    finished = {(row["entry"], row["seed"]) for row in rows_in(results)}
    for seed, entry in itertools.product(SEEDS, VARIATIONS):
        if (entry, seed) not in finished and not table_only:
            row = measuring.one_run(entry, "debug", {**COMMON, **VARIATIONS[entry], "seed": seed})
            figures = {name: row[name] for name in ("loss", "torch", "processor", "python")}
            measuring.append(results, {"entry": entry, "seed": seed, **figures})
            print(f"{entry}, seed {seed}: {row['loss']:.4f}", flush=True)
    print(widths(results))


def widths(results: Path) -> str:
    """Correlations over all pairs of settings, and the paired width over Welch's for each n, in Markdown."""
    losses: dict[str, dict[int, float]] = {}
    for row in rows_in(results):
        losses.setdefault(row["entry"], {})[row["seed"]] = row["loss"]
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in losses.values())))
    pairs = list(itertools.combinations(losses.values(), 2))
    found = [statistics.correlation([a[seed] for seed in seeds], [b[seed] for seed in seeds]) for a, b in pairs]
    rows = []
    for n in [n for n in (2, 3, 4, 5, 8) if n <= len(seeds)]:
        ratios = [width_ratio(a, b, seeds, n) for a, b in pairs]
        figures = [f"{figure:.2f}" for figure in (statistics.median(ratios), min(ratios), max(ratios))]
        rows.append([str(n), *figures, f"{sum(ratio < 1 for ratio in ratios)} of {len(pairs)}"])
    heading = ["n", "paired / Welch's width, median over pairs", "least", "most", "pairs in which paired is narrower"]
    return (
        f"{len(losses)} settings, {len(pairs)} pairs, {len(seeds)} seeds\n"
        f"correlation over seeds: median {statistics.median(found):.2f}, {min(found):.2f} to {max(found):.2f}\n\n"
        f"{measuring.markdown(heading, rows)}"
    )


def width_ratio(baseline: dict[int, float], other: dict[int, float], seeds: list[int], n: int) -> float:
    """The mean width of the paired interval over that of Welch's, for random subsets of n seeds."""
    generator = random.Random(n)
    total = [0.0, 0.0]
    for _ in range(SUBSETS):
        subset = generator.sample(seeds, n)
        samples = [Sample(by_seed={seed: losses[seed] for seed in subset}) for losses in (baseline, other)]
        for place, method in enumerate((paired, welch)):
            found = method(*samples)
            total[place] += found.high - found.low
    return total[0] / total[1]


if __name__ == "__main__":
    measuring.run_script(__doc__, {"leave-one-out": leave_one_out, "paired-seeds": paired_seeds})
