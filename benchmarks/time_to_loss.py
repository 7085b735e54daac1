"""How long until character Shakespeare is predicted as well as by nanoGPT's CPU command: two recipes, in turns.

    python benchmarks/time_to_loss.py                                    # 3 seeds of both sides, all cores, alternating
    python benchmarks/time_to_loss.py --seeds 1 2 3 4 5 --flags "--n-layer 3"        # of the challenger
    python benchmarks/time_to_loss.py --only bare                        # is the baseline as fast as plain PyTorch?
    python benchmarks/time_to_loss.py --path input.txt                   # the text, where there is no network

Both sides are judged alike: all held-out characters, in windows of 64, and in fp32 whatever a side trains in. A side is
looked at after every 1/20 of its own steps and ends at the first look at or below the loss. Its seconds are those of
its training steps and of compiling; those of evaluating are not counted, and are printed. A baseline that ends above
the loss counts with all its seconds, which is in its favour, and is marked.

First the baseline is held against a bare PyTorch loop of the same net, step by step in turns: our loop may cost 5 %.
Each finished run is a line in benchmarks/results/time_to_loss.jsonl, for the record: nothing is taken from there.
"""

import argparse
import contextlib
import itertools
import json
import math
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import as_quill  # noqa: F401  (first)
import numpy as np
import torch
from bare_loop import BareLoop, Net
from finished_runs import RESULTS, Row, append, interval, machine, provenance

from quillgpt import checkpoint
from quillgpt.cli.settings import load_settings
from quillgpt.config import RunConfig, updated
from quillgpt.data.held_out import HeldOutWindows
from quillgpt.distributed import Ranks
from quillgpt.errors import QuillError
from quillgpt.evaluate.held_out_loss import evaluate_held_out
from quillgpt.hardware import available_cores
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.train.loop import train
from quillgpt.train.open_data import Data, open_data
from quillgpt.train.progress import Quiet

LOSS = 1.8857
CONTEXT = 64
LOOKS = 20
GOAL, AMBITION = 1 / 5, 1 / 10
TURNS, STEPS_A_TURN, WARMUP_STEPS = 5, 60, 5
OURS = "ours"
Clock = Callable[[], float]
SIDES = {"baseline": "nanogpt-cpu", "challenger": "modern-shakespeare-char"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", default=SIDES["baseline"], metavar="RECIPE")
    parser.add_argument("--challenger", default=SIDES["challenger"], metavar="RECIPE")
    parser.add_argument("--flags", default="", help="of the challenger, as for quill train")
    parser.add_argument("--loss", type=float, default=LOSS, help="nats per character")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--path", default="", help="the text, instead of fetching it")
    parser.add_argument("--threads", type=int, default=0, help="of both sides; 0: as many as cores")
    parser.add_argument("--only", choices=["bare", "challenger", "baseline", "sides"], default="")
    parser.add_argument("--results", type=Path, default=RESULTS / "time_to_loss.jsonl")
    options = parser.parse_args()
    print(f"{machine()}, {available_cores()} cores", flush=True)
    try:
        baseline = settings_of(options.baseline, "", options)
        data = open_data(baseline, None, Ranks(), Quiet())
        if options.only in ("", "bare"):
            print(against_bare_loop(baseline, data), flush=True)
        sides = {"baseline": baseline} if options.only in ("", "sides", "baseline") else {}
        if options.only in ("", "sides", "challenger"):
            sides["challenger"] = settings_of(options.challenger, options.flags, options)
        if sides:
            print(alternated(sides, options), flush=True)
    except QuillError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def settings_of(recipe: str, flags: str, options: argparse.Namespace) -> RunConfig:
    """A side's settings: the recipe with flags, looked at often, nothing kept on the way."""
    words = [recipe, *shlex.split(flags), "--threads", str(options.threads), "--path", options.path]
    config = load_settings(words).config
    looks = {"eval_every": max(1, config.train.steps // LOOKS), "eval_iters": 0, "eval_tokens": 1 << 40}
    return updated(config, looks | {"save_every": 0, "sample_every": 0, "log_every": 10}, where=recipe)


def windows_of(data: Data) -> HeldOutWindows:
    """All held-out characters in windows of 64, for both sides."""
    return HeldOutWindows(data.held_out.dataset, CONTEXT, 1 << 40)


def alternated(sides: Mapping[str, RunConfig], options: argparse.Namespace) -> str:
    """Train seed by seed, one side after the other; what came of it."""
    rows: dict[str, list[Row]] = {name: [] for name in sides}
    for seed, name in itertools.product(options.seeds, sides):
        config = updated(sides[name], {"seed": seed, "stop_at_loss": options.loss}, where=name)
        row = timed(name, config, options)
        append(options.results, row)
        rows[name].append(row)
        print(told(row), flush=True)
    return summary(rows, options.loss)


def timed(name: str, config: RunConfig, options: argparse.Namespace) -> Row:
    """One run of a side, in a directory that is then deleted."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(updated(config, {"out": f"{folder}/run"}, where=name), judge=windows_of)
        last = read_metrics(outcome.run / "metrics.jsonl")[-1]
        environment = json.loads((outcome.run / "environment.json").read_text())
        newest = checkpoint.committed(RunDirectory(outcome.run))[-1]
        state = newest.read_json(checkpoint.STATE)
        judged = loss_in_fp32(newest.path, config)
    training, compiling = float(str(last["elapsed_seconds"])), float(environment["compile_seconds"])
    return {
        "side": name,
        "recipe": options.baseline if name == "baseline" else f"{options.challenger} {options.flags}".strip(),
        "seed": config.train.seed,
        "loss": judged,
        "reached": judged <= options.loss,
        "seconds": training + compiling,
        "training_seconds": training,
        "compile_seconds": compiling,
        "evaluation_seconds": state["evaluation_seconds"],
        "steps": outcome.step,
        "tokens": last["tokens"],
        "threads": environment["choices"]["threads"],
        "dtype": environment["choices"]["dtype"],
    } | provenance()


def loss_in_fp32(weights: Path, config: RunConfig) -> float:
    """A checkpoint's weights judged once more, in fp32."""
    data = open_data(config, None, Ranks(), Quiet())
    model, _ = checkpoint.load_model(weights)
    return evaluate_held_out(model, windows_of(data), data.bytes_per_token, batch_size=32).loss


def told(row: Row) -> str:
    """A finished run on one line."""
    mark = "" if row["reached"] else "  NOT REACHED"
    return (
        f"{row['side']:<10} seed {row['seed']}: {row['seconds']:7.1f} s = {row['training_seconds']:.1f} training + "
        f"{row['compile_seconds']:.1f} compiling; {row['steps']:,} steps, {row['tokens']:,} characters, loss "
        f"{row['loss']:.4f}{mark} (evaluating took {row['evaluation_seconds']:.1f} s more)"
    )


def summary(rows: Mapping[str, list[Row]], loss: float) -> str:
    """Seconds of each side, and their ratio seed by seed, with Student's 95 % interval."""
    lines = []
    for name, finished in rows.items():
        mean, half = interval([row["seconds"] for row in finished])
        missed = sum(not row["reached"] for row in finished)
        mark = f"; {missed} of {len(finished)} did not reach the loss" if missed else ""
        lines.append(f"{name}: {mean:.1f} ± {half:.1f} s to {loss}{mark}")
    if {"baseline", "challenger"} <= rows.keys():
        pairs = list(zip(rows["challenger"], rows["baseline"], strict=True))
        ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in pairs]
        mean, half = interval(ratios)
        listed = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        holds = all(row["reached"] for row in rows["challenger"])
        verdict = "not reached by every seed" if not holds else ("met" if mean <= GOAL else "NOT met")
        ambition = "met" if holds and mean <= AMBITION else "not met"
        lines.append(f"challenger / baseline: {mean:.3f} ± {half:.3f} ({listed}); 1 / {1 / mean:.1f}")
        lines.append(f"goal {GOAL}: {verdict}; ambition {AMBITION}: {ambition}")
    return "\n".join(lines)


class InTurns(Quiet):
    """A screen that lets every bare loop make a step after each of ours, and notes the seconds of all.

    So what disturbs the machine disturbs them alike, and a step of ours has everything the loop does.
    """

    def __init__(self, loops: Mapping[str, BareLoop], clock: Clock) -> None:
        self.loops, self.clock = loops, clock
        self.seconds: dict[str, list[float]] = {name: [] for name in (OURS, *loops)}
        self.started = math.nan

    def step(self, line: Mapping[str, Any]) -> None:
        """Our step ends here; after the bare ones the next begins."""
        self.seconds[OURS].append(self.clock() - self.started)
        with as_torch_comes():
            for name, loop in self.loops.items():
                self.seconds[name] += loop.run(1, self.clock)
        self.started = self.clock()


@contextlib.contextmanager
def as_torch_comes() -> Iterator[None]:
    """Without the deterministic algorithms that ours asks for."""
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True)


def against_bare_loop(config: RunConfig, data: Data) -> str:
    """Our loop and the bare one, a step of each in turn; the bare one with our vocabulary and with nanoGPT's.

    The ratio is of the medians of a turn; a turn is a run of ours. With one thread the seconds are the processor's,
    which other programs cannot take.
    """
    clock: Clock = time.process_time if config.train.threads == 1 else time.perf_counter
    kind = "CPU seconds" if config.train.threads == 1 else "seconds"
    tokens = np.concatenate([np.asarray(shard.tokens) for shard in data.train.shards])
    letters = tokens[tokens < 65]  # all but the end of the text
    sizes = {"bare, same vocabulary": (tokens, data.tokenizer.vocab_size), "bare, 65 letters": (letters, 65)}
    medians: dict[str, list[float]] = {name: [] for name in (OURS, *sizes)}
    for turn in range(TURNS):
        loops = {name: BareLoop(Net(vocab_size=size), ids, seed=turn) for name, (ids, size) in sizes.items()}
        screen = InTurns(loops, clock)
        with tempfile.TemporaryDirectory() as folder:
            changes = {"steps": STEPS_A_TURN + WARMUP_STEPS + 1, "eval_every": 0, "eval_tokens": 640, "seed": turn}
            train(updated(config, changes | {"out": f"{folder}/run"}, where=OURS), screen)
        for name, seconds in screen.seconds.items():
            medians[name].append(statistics.median(seconds[WARMUP_STEPS:-1]))  # our last one evaluates
    lines = [f"{name:<22} {1e3 * statistics.median(each):7.2f} ms a step, {kind}" for name, each in medians.items()]
    for name in sizes:
        ratios = [theirs / mine for theirs, mine in zip(medians[name], medians[OURS], strict=True)]
        mean, half = interval(ratios)
        turns = f"over {TURNS} turns of {STEPS_A_TURN} steps"
        lines.append(f"our speed / {name}: {mean:.3f} ± {half:.3f} {turns} (goal 0.95)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
