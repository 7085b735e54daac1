"""Steps to the same loss: the modern recipe against the same net in GPT-2's recipe, both at tuned rates.

    python benchmarks/steps_to_loss.py                               # sweeps, then three seeds; two runs at a time
    python benchmarks/steps_to_loss.py --recipe modern-python --steps 400
    python benchmarks/steps_to_loss.py --table                       # from the finished runs

GPT-2's side is the recipe with every modern line put back (`GPT2S` of ablations.py): learned positions, LayerNorm,
GELU, biases, tied head, AdamW, cosine. Width, depth, data, context and tokens a step are the same.

1. Each side is swept over the rates of `RATES`, one seed, --steps steps. The best is taken; where it is the first or
   the last of its rates, that is said, because the sweep was then too narrow.
2. GPT-2's side runs --steps steps with three seeds; its loss at the end is the one to reach.
3. The modern side runs shares of these steps, each with its whole schedule in them, with the same seeds. Where its loss
   crosses that of the same seed, between two shares on a straight line over the logarithm of the steps, is its number.

One process and one thread a run. Each finished run is a line in benchmarks/results/steps_to_loss-RECIPE.jsonl.
"""

import argparse
import itertools
import math
import statistics
import sys
from pathlib import Path

from ablations import GPT2S
from finished_runs import (
    KEPT_NOTHING,
    ONE_THREAD,
    RESULTS,
    Row,
    Settings,
    finish_missing,
    interval,
    machine,
    rows_of,
    with_interval,
)

from quillgpt import load_recipe
from quillgpt.errors import QuillError

SHARES = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75)
GOAL = 0.5
RATES = {"gpt2": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), "modern": (0.0125, 0.025, 0.05, 0.1)}
"""GPT-2's own rate, and Muon's: the other rates of the modern side keep their ratio to it"""
FOLLOWING = ("embedding_lr", "head_lr", "scalar_lr")
GPT2 = {name: value for line in GPT2S.values() for name, value in line.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="modern-python", help="a name, or a .toml file; its optimizer is muon")
    parser.add_argument("--steps", type=int, default=400, help="of GPT-2's side")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--path", default="", help="the text, where the recipe would fetch it")
    parser.add_argument("--processes", type=int, default=2, help="runs at one time")
    parser.add_argument("--results", type=Path, default=None)
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    options.results = options.results or RESULTS / f"steps_to_loss-{Path(options.recipe).stem}.jsonl"
    print(f"{machine()}\n{options.recipe}, {options.steps:,} steps of GPT-2's side, one thread a run", flush=True)
    try:
        best = {side: swept(side, options) for side in RATES}
        print(crossing(best, options))
    except QuillError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def settings_of(side: str, rate: float, seed: int, steps: int, options: argparse.Namespace) -> Settings:
    """A run's settings: everything that a side changes of the recipe."""
    own = load_recipe(options.recipe).optim
    fixed: dict[str, bool | int | float | str] = {**KEPT_NOTHING, **ONE_THREAD, "seed": seed, "steps": steps}
    if options.path:
        fixed["path"] = options.path
    if side == "gpt2":
        return {**fixed, **GPT2, "lr": rate, "min_lr": rate / 10, "warmup_steps": max(1, steps // 20)}
    following = {name: value * rate / own.lr for name in FOLLOWING if (value := getattr(own, name))}
    return {**fixed, **following, "lr": rate, "min_lr": own.min_lr * rate / own.lr}


def rows_wanted(wanted: dict[str, Settings], options: argparse.Namespace) -> dict[str, Row]:
    """Their rows, trained where they are missing."""
    if options.table:
        return rows_of(options.results, options.recipe, wanted)
    return finish_missing(options.results, options.recipe, wanted, processes=options.processes)


def swept(side: str, options: argparse.Namespace) -> float:
    """The best rate of a side, over one seed; the sweep is printed."""
    wanted = {
        f"{side}, rate {rate:g}": settings_of(side, rate, options.seeds[0], options.steps, options)
        for rate in RATES[side]
    }
    rows = rows_wanted(wanted, options)
    losses = {rate: row["loss"] for rate, row in zip(RATES[side], map(rows.get, wanted), strict=True) if row}
    finite = {rate: loss for rate, loss in losses.items() if loss is not None}
    if not finite:
        sys.exit(f"{side}: no finished run with a finite loss")
    best = min(finite, key=lambda rate: finite[rate])
    listed = ", ".join(f"{rate:g}: {'diverged' if loss is None else f'{loss:.4f}'}" for rate, loss in losses.items())
    at_edge = " (AT THE EDGE of the sweep)" if best in (RATES[side][0], RATES[side][-1]) else ""
    print(f"{side}: held-out loss by rate {listed}; taken: {best:g}{at_edge}", flush=True)
    return best


def crossing(best: dict[str, float], options: argparse.Namespace) -> str:
    """Train both sides, and say after which share of GPT-2's steps the modern one is where GPT-2 ends."""
    lengths = sorted({max(1, round(share * options.steps)) for share in SHARES})
    wanted = {
        f"gpt2, seed {seed}": settings_of("gpt2", best["gpt2"], seed, options.steps, options) for seed in options.seeds
    }
    wanted |= {
        f"modern, {steps} steps, seed {seed}": settings_of("modern", best["modern"], seed, steps, options)
        for seed, steps in itertools.product(options.seeds, lengths)
    }
    rows = rows_wanted(wanted, options)
    losses = {name: row["loss"] for name, row in rows.items() if row["loss"] is not None}
    lines = ["", "| side | steps | share | held-out loss, nats per token |", "|---|---|---|---|"]
    for steps in [0, *lengths]:
        names = [f"modern, {steps} steps, seed {seed}" if steps else f"gpt2, seed {seed}" for seed in options.seeds]
        there = [losses[name] for name in names if name in losses]
        cells = (
            "modern" if steps else "GPT-2",
            f"{steps or options.steps:,}",
            f"{(steps or options.steps) / options.steps:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} | {with_interval(there) if there else 'none finished'} |")
    shares = [
        found / options.steps
        for seed in options.seeds
        if f"gpt2, seed {seed}" in losses
        and (
            found := steps_to(
                {n: losses.get(f"modern, {n} steps, seed {seed}") for n in lengths}, losses[f"gpt2, seed {seed}"]
            )
        )
    ]
    if len(shares) < len(options.seeds):
        lines.append(
            f"\n{len(options.seeds) - len(shares)} of {len(options.seeds)} seeds do not cross within {lengths} steps"
        )
        return "\n".join(lines)
    mean, half = interval(shares)
    listed = ", ".join(f"{share:.3f}" for share in shares)
    verdict = "met" if mean <= GOAL else "NOT met"
    lines.append(f"\nsteps to GPT-2's loss, modern / GPT-2: {mean:.3f} ± {half:.3f} ({listed}); goal {GOAL}: {verdict}")
    if statistics.fmean(shares) <= lengths[0] / options.steps:
        lines.append("(at or below the shortest run: an upper bound)")
    return "\n".join(lines)


def steps_to(losses: dict[int, float | None], wanted: float) -> float:
    """Steps at which a side reaches the loss, between the runs on either side of it; 0 where none does."""
    there = sorted((steps, loss) for steps, loss in losses.items() if loss is not None)
    for (before, above), (after, below) in itertools.pairwise([(0, math.inf), *there]):
        if below <= wanted:
            if not before:
                return float(after)
            share = (above - wanted) / (above - below)
            return math.exp(math.log(before) + share * (math.log(after) - math.log(before)))
    return 0.0


if __name__ == "__main__":
    main()
