"""Leave one out: a modern recipe, and the same with one of its lines put back to GPT-2's value, one at a time.

    python benchmarks/ablations.py modern-python                   # 3 seeds, two runs at a time, at most 45 s each
    python benchmarks/ablations.py modern-python --lines muon rotary --seeds 1 2 3 4 5
    python benchmarks/ablations.py modern-python --table           # the finished runs as a Markdown table

Every run has the same steps, tokens and seeds; one process and one thread each, so that two at a time do not disturb
each other. The steps are as many as the full recipe makes in --seconds of one thread (or --steps), with the recipe's
whole schedule in them. No line's replacement is tuned, but that AdamW in Muon's place is tried at several rates
(`RATES_WITHOUT_MUON`): Muon's own would say nothing of it. The difference is by seed, with Student's 95 % interval.

Each finished run is a line in benchmarks/results/ablations-RECIPE.jsonl; killed? the same line again.
"""

import argparse
import statistics
import sys
from pathlib import Path

from finished_runs import KEPT_NOTHING, ONE_THREAD, RESULTS, Row, Settings, finish_missing, machine, rows_of, steps_in

from quillgpt import load_recipe
from quillgpt.compare.difference import FEWEST_PAIRS, Sample, paired, welch
from quillgpt.config import flatten
from quillgpt.errors import QuillError
from quillgpt.run_dir import read_metrics

RATES_WITHOUT_MUON = (1e-3, 2e-3, 4e-3, 8e-3)

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
    "zero-initialised outputs": {"initialization": "gpt2"},
    "long linear decay": {"schedule": "cosine"},
    "momentum warm-up": {"momentum_warmup_steps": 0},
    "batch-size ramp": {"batch_ramp": ""},
    **{
        f"Muon (AdamW, rate {rate:g})": {
            "optimizer": "adamw",
            "lr": rate,
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-8,
            "weight_decay": 0.1,
            "warmup_steps": 20,
            "gradient_clip": 1.0,
        }
        for rate in RATES_WITHOUT_MUON
    },
}
"""each modern line, and what GPT-2's recipe has in its place"""
FULL = "full recipe"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a name, or a .toml file")
    parser.add_argument("--lines", nargs="+", default=[], metavar="WORD", help="only those whose name has such a word")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, default=40.0, help="of one thread, for a run of the full recipe")
    parser.add_argument(
        "--steps", type=int, default=0, help="steps of a run; 0: as --seconds says, or as rows there have"
    )
    parser.add_argument("--processes", type=int, default=2, help="runs at one time")
    parser.add_argument("--path", default="", help="the text, where the recipe would fetch it")
    parser.add_argument("--results", type=Path, default=None)
    parser.add_argument("--table", action="store_true", help="print the finished runs and train nothing")
    options = parser.parse_args()
    results = options.results or RESULTS / f"ablations-{Path(options.recipe).stem}.jsonl"
    common: Settings = {"path": options.path} if options.path else {}
    try:
        there = [row for row in read_metrics(results) if row.get("recipe") == options.recipe]
        if options.table and not there:
            sys.exit(f"{results}: no runs of {options.recipe} yet")
        steps = options.steps or (int(there[-1]["settings"]["steps"]) if there else 0)
        steps = steps or steps_in(options.seconds, options.recipe, common)
        wanted = {
            f"{line}, seed {seed}": settings
            for seed in options.seeds
            for line, settings in lines_of(options.recipe, steps, seed, common, options.lines).items()
        }
        print(f"{machine()}\n{options.recipe}, {steps:,} steps, one thread a run", flush=True)
        rows = (
            rows_of(results, options.recipe, wanted)
            if options.table
            else finish_missing(results, options.recipe, wanted, processes=options.processes)
        )
        print(table(rows))
    except QuillError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def lines_of(recipe: str, steps: int, seed: int, common: Settings, words: list[str]) -> dict[str, Settings]:
    """The settings of each run of a seed: the full recipe, and one for each line that the recipe has."""
    own = flatten(load_recipe(recipe))
    fixed = dict(common) | KEPT_NOTHING | ONE_THREAD | {"seed": seed, "steps": steps}
    found: dict[str, Settings] = {FULL: fixed}
    for line, settings in GPT2S.items():
        is_chosen = not words or any(word.lower() in line.lower() for word in words)
        if is_chosen and any(own[name] != value for name, value in settings.items()) and is_modern(line, own):
            found[line] = fixed | settings
    return found


def is_modern(line: str, own: Settings) -> bool:
    """Whether the recipe has the line at all: Muon's replacement differs from any recipe by its rate."""
    return own["optimizer"] == "muon" if line.startswith("Muon") or line == "momentum warm-up" else True


def table(rows: dict[str, Row]) -> str:
    """Markdown, the line that is missed most first; loss in bits per byte, less is better."""
    losses: dict[str, dict[int, float]] = {}
    diverged: dict[str, int] = {}
    for name, row in rows.items():
        line = name.rpartition(", seed ")[0]
        if row["bits_per_byte"] is None:
            diverged[line] = diverged.get(line, 0) + 1
        else:
            losses.setdefault(line, {})[int(row["settings"]["seed"])] = float(row["bits_per_byte"])
    full = Sample(by_seed=losses.pop(FULL, {}))
    first = f"{full.mean:.4f} | {full.standard_deviation:.4f} | | {full.n} | {diverged.pop(FULL, 0)}"
    lines = [
        "| without | bits per byte | ± over seeds | difference to the full recipe | n | diverged |",
        "|---|---|---|---|---|---|",
        f"| nothing: the {FULL} | {first} |",
    ]
    for line, by_seed in sorted(losses.items(), key=lambda entry: -statistics.fmean(entry[1].values())):
        sample = Sample(by_seed=by_seed)
        cells = (line, f"{sample.mean:.4f}", f"{sample.standard_deviation:.4f}", difference(full, sample))
        lines.append(f"| {' | '.join(cells)} | {sample.n} | {diverged.pop(line, 0)} |")
    lines += [f"| {line} | | | | 0 | {count} |" for line, count in diverged.items()]
    return "\n".join(lines)


def difference(full: Sample, sample: Sample) -> str:
    """How much worse without the line: by seed where both have the same three or more, else Welch's."""
    shared = sorted(full.by_seed.keys() & sample.by_seed.keys())
    if len(shared) >= FEWEST_PAIRS:
        pair = [Sample(by_seed={seed: one.by_seed[seed] for seed in shared}) for one in (full, sample)]
        found = paired(*pair)
    elif full.n > 1 and sample.n > 1:
        found = welch(full, sample)
    else:
        return f"{sample.mean - full.mean:+.4f}"
    return f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


if __name__ == "__main__":
    main()
