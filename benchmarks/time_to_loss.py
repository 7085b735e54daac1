"""Time and steps to a loss, and the loss after some minutes: recipes in turns, seed by seed.

    python benchmarks/time_to_loss.py seconds       # character Shakespeare to 1.8857: two recipes, 3 seeds, all cores
    python benchmarks/time_to_loss.py seconds --challenger "modern-shakespeare-char --n-layer 3"
    python benchmarks/time_to_loss.py bare          # our loop against plain PyTorch
    python benchmarks/time_to_loss.py minutes       # modern-python after two minutes, against file compressors
    python benchmarks/time_to_loss.py minutes "modern-python --n-layer 5" python            # in turns
    python benchmarks/time_to_loss.py steps         # the share of GPT-2's steps that the modern recipe needs
    python benchmarks/time_to_loss.py steps --recipe modern-shakespeare-char --steps 500

`quill bench time-to-loss` measures any recipe; `seconds` makes two recipes comparable. Each finished run is a line in
benchmarks/results/. `steps` continues after a kill; results in seconds depend on the machine and its load.
"""

import itertools
import json
import math
import shlex
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
import tyro
from ablations import GPT2S
from bare_loop import BareLoop, Net
from measuring import NOTHING_KEPT, ONE_THREAD, RESULTS, Clock, Row, Settings, interval, with_interval

from quillgpt import checkpoint, load_recipe
from quillgpt.cli.arguments import load_settings
from quillgpt.cli.demo import compressor_figures
from quillgpt.config import RunConfig, updated
from quillgpt.data.loader import ValidationWindows
from quillgpt.errors import DataError
from quillgpt.evaluate.loss import evaluate_loss
from quillgpt.evaluate.text import ALL_TOKENS
from quillgpt.run_dir import RunDirectory
from quillgpt.training.loop import Outcome, train
from quillgpt.training.screen import Screen
from quillgpt.training.setup import Data

LOSS, CONTEXT, EVALUATIONS = 1.8857, 64, 20
SIDES = ("baseline", "challenger")
TIME_GOAL, TIME_AMBITION = 1 / 5, 1 / 10
TURNS, STEPS_PER_TURN, WARMUP_STEPS = 5, 60, 5
OURS = "ours"
XZ, XZ_GOAL, XZ_AMBITION = "xz -9e", 0.92, 0.85
SHARES, STEPS_GOAL = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75), 0.5
RATES = {"gpt2": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), "modern": (0.0125, 0.025, 0.05, 0.1)}
"""GPT-2's own rate, and Muon's: the other rates of the modern side keep their ratio to it"""
FOLLOWING = ("embedding_lr", "head_lr", "scalar_lr")
GPT2 = {name: value for line in GPT2S.values() for name, value in line.items()}


def seconds(
    baseline: str = "nanogpt-cpu",
    challenger: str = "modern-shakespeare-char",
    loss: float = LOSS,
    seeds: tuple[int, ...] = (1, 2, 3),
    path: str = "",
    threads: int = 0,
    only: str = "",
    results: Path = RESULTS / "time_to_loss.jsonl",
) -> None:
    """Seconds of training and compiling until a loss is reached, two recipes in turns.

    A side is evaluated after every 1/20 of its steps and ends at the first evaluation at or below the loss. Its last
    weights are evaluated again: all validation characters, windows of 64, fp32. Seconds of evaluation do not count.
    A baseline that ends above the loss counts with all its seconds, in its favour.

    Args:
        challenger: a recipe, followed by flags as for quill train; so is baseline
        loss: nats per character
        path: the text, instead of downloading it
        threads: of both sides; 0: one per core
        only: baseline or challenger
    """
    measuring.print_machine()
    recipes = {"baseline": baseline, "challenger": challenger}
    sides = {name: side_settings(recipes[name], path, threads) for name in SIDES if only in ("", name)}
    rows: dict[str, list[Row]] = {name: [] for name in sides}
    for seed, name in itertools.product(seeds, sides):
        config = updated(sides[name], {"seed": seed, "stop_at_loss": loss}, where=name)
        row = {"side": name, "recipe": recipes[name], "seed": seed} | timed(config, loss)
        measuring.append(results, row)
        rows[name].append(row)
        mark = "" if row["reached"] else "  NOT REACHED"
        parts = f"{row['training_seconds']:.1f} training + {row['compile_seconds']:.1f} compiling"
        work = f"{row['steps']:,} steps, {row['tokens']:,} characters, {row['evaluation_seconds']:.1f} s of evaluation"
        result = f"{row['seconds']:7.1f} s = {parts}; loss {row['loss']:.4f}{mark}"
        print(f"{name:<10} seed {seed}: {result} ({work})", flush=True)
    print(summary(rows, loss))


def side_settings(words: str, path: str, threads: int) -> RunConfig:
    """A recipe with flags, evaluated often on all tokens, without checkpoints."""
    config = load_settings([*shlex.split(words), "--threads", str(threads), "--path", path]).config
    evaluations = {"eval_every": max(1, config.train.steps // EVALUATIONS), "eval_tokens": ALL_TOKENS}
    return updated(config, {**NOTHING_KEPT, **evaluations}, where=words)


def timed(config: RunConfig, loss: float) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(updated(config, {"out": f"{folder}/run"}, where="benchmark"))
        found = facts(outcome)
        newest = checkpoint.committed(RunDirectory(outcome.run))[-1]
        state = newest.read_json(checkpoint.STATE)
        data = measuring.data_of(config)
        windows = ValidationWindows(data.validation.dataset, CONTEXT, ALL_TOKENS)
        model = checkpoint.load_model(newest.path)[0]
        judged = evaluate_loss(model, windows, data.bytes_per_token, batch_size=32).loss
    seconds = {"training_seconds": found.pop("step_seconds"), "compile_seconds": found.pop("compile_seconds")}
    row = {"loss": judged, "reached": judged <= loss, "seconds": sum(seconds.values()), **seconds}
    return row | {"evaluation_seconds": state["evaluation_seconds"]} | found


def facts(outcome: Outcome) -> Row:
    last = measuring.last_line(outcome.run)
    environment = json.loads((outcome.run / "environment.json").read_text(encoding="utf-8"))
    row = {"steps": outcome.step, "tokens": last["tokens"], "step_seconds": float(last["elapsed_seconds"])}
    row |= {"compile_seconds": float(environment["compile_seconds"])}
    return row | {name: environment["runtime"][name] for name in ("threads", "dtype")} | measuring.provenance()


def summary(rows: Mapping[str, list[Row]], loss: float) -> str:
    """Seconds of each side, and their ratio seed by seed, with Student's 95 % interval."""
    lines = []
    for name, finished in rows.items():
        missed = sum(not row["reached"] for row in finished)
        mark = f"; {missed} of {len(finished)} did not reach the loss" if missed else ""
        lines.append(f"{name}: {with_interval([row['seconds'] for row in finished], '.1f')} s to {loss}{mark}")
    if {*SIDES} <= rows.keys():
        pairs = zip(rows["challenger"], rows["baseline"], strict=True)
        ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in pairs]
        mean, listed = statistics.fmean(ratios), ", ".join(f"{ratio:.3f}" for ratio in ratios)
        lines.append(f"challenger / baseline: {with_interval(ratios, '.3f')} ({listed}); 1 / {1 / mean:.1f}")
        if all(row["reached"] for row in rows["challenger"]):
            lines.append(verdict(mean, TIME_GOAL, TIME_AMBITION))
        else:
            lines.append(f"goal {TIME_GOAL}: not reached by every seed")
    return "\n".join(lines)


def verdict(value: float, goal: float, ambition: float) -> str:
    met = "met" if value <= ambition else "not met"
    return f"goal {goal}: {'met' if value <= goal else 'NOT met'}; ambition {ambition}: {met}"


class InTurns(Screen):
    """A screen that runs a step of every plain loop after each of ours, and records the seconds of all.

    So other work on the machine disturbs them alike, and a step of ours includes everything that the loop does.
    """

    def __init__(self, loops: Mapping[str, BareLoop], clock: Clock) -> None:
        self.loops, self.clock = loops, clock
        self.seconds: dict[str, list[float]] = {name: [] for name in (OURS, *loops)}
        self.started = math.nan

    def step(self, line: Mapping[str, Any]) -> None:
        """After our step, run a step of each plain loop, without the deterministic algorithms that ours requests."""
        self.seconds[OURS].append(self.clock() - self.started)
        torch.use_deterministic_algorithms(False)
        for name, loop in self.loops.items():
            self.seconds[name] += loop.run(1, self.clock)
        torch.use_deterministic_algorithms(True)
        self.started = self.clock()


def bare(baseline: str = "nanogpt-cpu", path: str = "", threads: int = 0) -> None:
    """Our loop against a plain PyTorch loop of the same model, a step of each in turns; ours may take 5 % more.

    The plain loop has our vocabulary, or nanoGPT's of 65 letters. The ratio is of the medians of a turn; a turn is a
    run of ours. With one thread the times are processor time.
    """
    measuring.print_machine()
    config = side_settings(baseline, path, threads)
    data: Data = measuring.data_of(config)
    clock, kind = (time.process_time, "CPU seconds") if threads == 1 else (time.perf_counter, "seconds")
    tokens = np.concatenate([np.asarray(shard.tokens) for shard in data.train.shards])
    letters = tokens[tokens < 65]  # all but the end of the text
    sizes = {"bare, same vocabulary": (tokens, data.tokenizer.vocab_size), "bare, 65 letters": (letters, 65)}
    medians: dict[str, list[float]] = {name: [] for name in (OURS, *sizes)}
    for turn in range(TURNS):
        screen = InTurns({n: BareLoop(Net(vocab_size=size), ids, seed=turn) for n, (ids, size) in sizes.items()}, clock)
        with tempfile.TemporaryDirectory() as folder:
            changes = {"steps": STEPS_PER_TURN + WARMUP_STEPS + 1, "eval_every": 0, "eval_tokens": 640, "seed": turn}
            train(updated(config, changes | {"out": f"{folder}/run"}, where=OURS), screen)
        for name, found in screen.seconds.items():
            medians[name].append(statistics.median(found[WARMUP_STEPS:-1]))  # our last one evaluates
    for name, each in medians.items():
        print(f"{name:<22} {1e3 * statistics.median(each):7.2f} ms a step, {kind}")
    for name in sizes:
        ratios = [theirs / ours for theirs, ours in zip(medians[name], medians[OURS], strict=True)]
        turns = f"over {TURNS} turns of {STEPS_PER_TURN} steps"
        print(f"our speed / {name}: {with_interval(ratios, '.3f')} {turns} (goal 0.95)")


def minutes(
    recipes: tyro.conf.Positional[tuple[str, ...]] = ("modern-python",),
    minutes: float = 2.0,
    seeds: tuple[int, ...] = (1, 2, 3),
    results: Path = RESULTS / "two_minutes.jsonl",
) -> None:
    """Validation bits per byte after some minutes of training, against gzip -9 and xz -9e on the same text.

    The minutes include evaluations and exclude calibration. The goal is at most 0.92 of xz.

    Args:
        recipes: each a recipe, followed by flags as for quill train
    """
    measuring.print_machine(more=f"{minutes:g} minutes a run")
    rows: dict[str, list[Row]] = {words: [] for words in recipes}
    for seed, words in itertools.product(seeds, recipes):
        config = load_settings([*shlex.split(words), "--minutes", str(minutes)]).config
        config = updated(config, {**NOTHING_KEPT, "eval_tokens": ALL_TOKENS, "seed": seed}, where=words)
        compressed = compressor_figures(measuring.data_of(config).directory)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            outcome = train(updated(config, {"out": f"{folder}/run"}, where=words))
            row = {"recipe": words, "minutes": minutes, "seed": seed} | facts(outcome)
        bits = outcome.validation.bits_per_byte
        row |= {"bits_per_byte": bits, "of_xz": bits / compressed[XZ], "of_gzip": bits / compressed["gzip -9"]}
        row |= {"compressors": compressed, "val_bytes": outcome.validation.bytes}
        row["seconds"] = round(time.perf_counter() - started, 1)
        measuring.append(results, row)
        rows[words].append(row)
        ratios = f"{row['of_xz']:.3f} x {XZ}, {row['of_gzip']:.3f} x gzip -9"
        work = f"{row['steps']:,} steps, {row['tokens']:,} tokens, {row['step_seconds']:.1f} of {row['seconds']:.1f} s"
        print(f"{words}, seed {seed}: {bits:.4f} bits per byte, {ratios}; {work}", flush=True)
    for words, finished in rows.items():
        of_xz, bits = [row["of_xz"] for row in finished], statistics.fmean(row["bits_per_byte"] for row in finished)
        result = verdict(statistics.fmean(of_xz), XZ_GOAL, XZ_AMBITION)
        print(f"{words}: {bits:.4f} bits per byte, {with_interval(of_xz, '.3f')} x {XZ}; {result}")


def steps(
    recipe: str = "modern-python",
    steps: int = 400,
    seeds: tuple[int, ...] = (1, 2, 3),
    path: str = "",
    processes: int = 2,
    results: Path | None = None,
) -> None:
    """Steps to the same loss: the modern recipe against the same model with GPT-2's recipe, both at tuned rates.

    GPT-2's side is the recipe with all replacements of ablations.py. The rates of each side are swept over `RATES` with
    one seed. GPT-2's side then runs --steps steps with every seed; its last loss is the target. The modern side runs
    shares of these steps, each with its complete schedule. Its steps to the target, seed by seed, are interpolated
    between two shares, linearly in the logarithm of the steps.

    Args:
        recipe: a name, or a .toml file; its optimizer is muon
        path: the text, if the recipe would download it
        processes: concurrent runs; 0: train nothing
    """
    results = results or RESULTS / f"steps_to_loss-{Path(recipe).stem}.jsonl"
    measuring.print_machine(more=f"{recipe}, {steps:,} steps of GPT-2's side, one thread a run")

    def rows_of(runs: dict[str, tuple[str, float, int, int]]) -> dict[str, Row]:
        settings = {name: sweep_settings(recipe, *run, path=path) for name, run in runs.items()}
        return measuring.finish_missing(results, recipe, settings, processes=processes)

    best = {}
    for side, rates in RATES.items():
        rows = rows_of({f"{side}, rate {rate:g}": (side, rate, seeds[0], steps) for rate in rates})
        losses = {rate: rows.get(f"{side}, rate {rate:g}", {}).get("loss") for rate in rates}
        finite = {rate: loss for rate, loss in losses.items() if loss is not None}
        if not finite:
            raise DataError(f"{side}: no finished run with a finite loss")
        best[side] = min(finite, key=lambda rate: finite[rate])
        listed = ", ".join(f"{rate:g}: {finite.get(rate, math.nan):.4f}" for rate in rates)
        at_edge = " (AT THE EDGE of the sweep)" if best[side] in (rates[0], rates[-1]) else ""
        print(f"{side}: validation loss by rate {listed}; taken: {best[side]:g}{at_edge}", flush=True)
    lengths = sorted({max(1, round(share * steps)) for share in SHARES})
    runs = {f"gpt2, seed {seed}": ("gpt2", best["gpt2"], seed, steps) for seed in seeds}
    for seed, length in itertools.product(seeds, lengths):
        runs[f"modern, {length} steps, seed {seed}"] = ("modern", best["modern"], seed, length)
    rows = rows_of(runs)
    print(crossing({name: row["loss"] for name, row in rows.items() if row["loss"] is not None}, steps, lengths, seeds))


def sweep_settings(recipe: str, side: str, rate: float, seed: int, steps: int, *, path: str = "") -> Settings:
    own = load_recipe(recipe).optim
    fixed: Settings = {**NOTHING_KEPT, **ONE_THREAD, "seed": seed, "steps": steps, **({"path": path} if path else {})}
    if side == "gpt2":
        return {**fixed, **GPT2, "lr": rate, "min_lr": rate / 10, "warmup_steps": max(1, steps // 20)}
    following = {name: value * rate / own.lr for name in FOLLOWING if (value := getattr(own, name))}
    return {**fixed, **following, "lr": rate, "min_lr": own.min_lr * rate / own.lr}


def crossing(losses: Mapping[str, float], steps: int, lengths: list[int], seeds: tuple[int, ...]) -> str:
    """The table of losses, and the share of GPT-2's steps after which the modern side reaches its last loss."""
    rows = []
    for length in [0, *lengths]:
        names = [f"modern, {length} steps, seed {seed}" if length else f"gpt2, seed {seed}" for seed in seeds]
        found = [losses[name] for name in names if name in losses]
        cells = ["modern" if length else "GPT-2", f"{length or steps:,}", f"{(length or steps) / steps:.2f}"]
        rows.append([*cells, with_interval(found) if found else "none finished"])
    text = "\n" + measuring.markdown(["side", "steps", "share", "validation loss, nats per token"], rows)
    shares = []
    for seed in seeds:
        modern = {length: losses.get(f"modern, {length} steps, seed {seed}") for length in lengths}
        if found := steps_to(modern, losses.get(f"gpt2, seed {seed}", -math.inf)):
            shares.append(found / steps)
    if len(shares) < len(seeds):
        return f"{text}\n\n{len(seeds) - len(shares)} of {len(seeds)} seeds do not cross within {lengths} steps"
    mean, half = interval(shares)
    listed = ", ".join(f"{share:.3f}" for share in shares)
    met = "met" if mean <= STEPS_GOAL else "NOT met"
    text += f"\n\nsteps to GPT-2's loss, modern / GPT-2: {mean:.3f} ± {half:.3f} ({listed}); goal {STEPS_GOAL}: {met}"
    return text + ("\n(at or below the shortest run: an upper bound)" if mean <= lengths[0] / steps else "")


def steps_to(losses: Mapping[int, float | None], target: float) -> float:
    """Steps to the target, interpolated between two runs; 0 if no run reaches it."""
    found = sorted((steps, loss) for steps, loss in losses.items() if loss is not None)
    for (before, above), (after, below) in itertools.pairwise([(0, math.inf), *found]):
        if below <= target:
            if not before:
                return float(after)
            share = (above - target) / (above - below)
            return math.exp(math.log(before) + share * (math.log(after) - math.log(before)))
    return 0.0


if __name__ == "__main__":
    measuring.run_script(__doc__, {"seconds": seconds, "bare": bare, "minutes": minutes, "steps": steps})
