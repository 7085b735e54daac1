"""The reference band of a recipe: where the loss of a healthy run lies, from runs that differ in their seed alone.

    python benchmarks/reference_bands.py debug                   # 8 seeds, at most 45 seconds each, two at a time
    python benchmarks/reference_bands.py all                     # every recipe that ships a band, one after the other
    python benchmarks/reference_bands.py python --seeds 12       # four more to the 8 that are there
    python benchmarks/reference_bands.py my.toml --out bands     # your own, for quill doctor RUN --band bands/my.json

Killed? The same line again: each finished run is a line in benchmarks/results/reference_bands/RECIPE.jsonl, and runs of
the same plan are not repeated. The band, src/quillgpt/evaluate/bands/RECIPE.json, is made anew of them each time.
A changed recipe, other data or another torch makes another plan; the lines of the old one stay and are not used.

The plan is made once, with the first run: as many steps as take --seconds with one thread, after a trial of a few
steps; where the recipe is trained by minutes, the schedule is of as many steps as fit into them here, with all cores.
Both can be given: --steps, --schedule-steps. One thread for each run, so that two at a time do not disturb each other.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import quillgpt.evaluate.bands
from quillgpt import files
from quillgpt.config import RunConfig, flatten, group_of, updated
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, QuillError
from quillgpt.evaluate.bands.finding import defining_settings, tokens_per_step
from quillgpt.evaluate.bands.making import FEWEST_SEEDS, make_band
from quillgpt.hardware import available_cores, cpu_name, detect
from quillgpt.model.gpt import GPT
from quillgpt.recipes import load_recipe
from quillgpt.run_dir import read_metrics
from quillgpt.run_record import read_run
from quillgpt.train.calibrate import steps_for_minutes
from quillgpt.train.loop import train
from quillgpt.train.open_data import open_data
from quillgpt.train.progress import Quiet
from quillgpt.train.resolve import resolve

RECIPES = (
    "debug",
    "one-layer",
    "modern-python",
    "modern-shakespeare-char",
    "nanogpt-cpu",
    "python",
    "gaussian-python",
    "gaussian-normalized-python",
    "gaussian-poly-python",
    "pointwise-python",
    "power-python",
    "polynomial",
)
BANDS = Path(quillgpt.evaluate.bands.__file__).parent
RESULTS = Path(__file__).parent / "results" / "reference_bands"
TRIAL_STEPS = 40
OF_THE_TIME = 0.9  # the rest is for the machine's moods, saving and the evaluation at the end
HELD_OUT_TOKENS = 20_000

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="a name, a .toml file, or all")
    parser.add_argument("--seeds", type=int, default=FEWEST_SEEDS, help=f"at least {FEWEST_SEEDS}; they are 1, 2, ...")
    parser.add_argument("--seconds", type=float, default=45.0, help="longest run")
    parser.add_argument("--steps", type=int, default=0, help="steps of a run; 0: as --seconds says")
    parser.add_argument("--schedule-steps", type=int, default=0, help="steps of the schedule; 0: the recipe's")
    parser.add_argument("--processes", type=int, default=min(2, available_cores()), help="runs at one time")
    parser.add_argument("--out", type=Path, default=BANDS, help="folder of the bands")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished runs")
    options = parser.parse_args()
    if options.seeds < FEWEST_SEEDS:
        parser.error(f"--seeds {options.seeds}: a band needs at least {FEWEST_SEEDS}")
    names = list(RECIPES) if options.recipes == ["all"] else options.recipes
    try:
        for name in names:
            measure(name, options)
    except QuillError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def measure(recipe: str, options: argparse.Namespace) -> None:
    """Train the seeds that have no row yet, and write the band."""
    started = time.perf_counter()
    results = options.results / f"{Path(recipe).stem}.jsonl"
    files.make_directory(results.parent)
    plan = planned(recipe, options, results)
    wanted = [seed for seed in range(1, options.seeds + 1) if seed not in {row["seed"] for row in rows(results, plan)}]
    print(f"{recipe}: {plan['steps']} of {plan['schedule_steps']} steps, seeds missing: {wanted or 'none'}", flush=True)
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(run, recipe, plan, seed) for seed in wanted]
        for number, done in enumerate(as_completed(running), start=1):
            row = done.result()
            append(results, row)
            last, seconds = row["mean_loss"][-1], row["seconds"]
            print(
                f"  {number}/{len(wanted)}  seed {row['seed']}: {seconds:.1f} s, last loss {last:.3f}, "
                f"held out {row['held_out_loss']:.3f}",
                flush=True,
            )
    path = options.out / f"{Path(recipe).stem}.json"
    band = made(Path(recipe).stem, plan, rows(results, plan))
    files.write_text(path, packed(band.to_json()))
    width = band.high - band.low
    print(
        f"{recipe}: {path} has {len(band.tokens)} points to step {band.steps}; at the last, loss {band.mean[-1]:.3f}, "
        f"interval {width[-1]:.3f} wide ({time.perf_counter() - started:.0f} s)",
        flush=True,
    )


def planned(recipe: str, options: argparse.Namespace, results: Path) -> Row:
    """What every run of the band has in common; the number of steps is taken from earlier rows where it can be."""
    config = settings_of_a_run(recipe, seed=1, out="runs/band")
    if not tokens_per_step(config):
        raise ConfigError(f"{recipe}: batch_size = 0 lets the machine choose the batch; a band needs it in the recipe")
    data = open_data(config, None, Ranks(), Quiet())
    plan: Row = {
        "settings": defining_settings(config),
        "optim": optim_settings(config),
        "fingerprint": data.train.fingerprint,
        "data": f"source {config.data.source}, tokenizer {data.tokenizer.name}, Python {platform.python_version()}",
        "log_every": config.train.log_every,
        "torch": torch.__version__,
        "dtype": resolve(config, detect(), Ranks())[0].dtype,
    }
    asked = {"steps": options.steps, "schedule_steps": options.schedule_steps}
    given = {name: steps for name, steps in asked.items() if steps}
    for row in reversed(read_metrics(results)):
        earlier = in_todays_settings(row["plan"])
        if earlier == earlier | plan | given:
            return earlier
    plan["schedule_steps"] = options.schedule_steps or steps_of_schedule(recipe)
    plan["steps"] = options.steps or min(plan["schedule_steps"], steps_in(options.seconds, recipe))
    plan["steps"] -= plan["steps"] % config.train.log_every
    return plan


def optim_settings(config: RunConfig) -> Row:
    """The optimizer's settings."""
    return {name: value for name, value in flatten(config).items() if group_of()[name] == "optim"}


def in_todays_settings(plan: Row) -> Row:
    """A plan with the settings that are younger than it, at their defaults."""
    usual = RunConfig()
    settings = {"settings": defining_settings(usual) | plan["settings"], "optim": optim_settings(usual) | plan["optim"]}
    return plan | settings


def settings_of_a_run(recipe: str, *, seed: int, out: str) -> RunConfig:
    """The recipe with a seed, one thread, and nothing kept."""
    return load_recipe(
        recipe,
        seed=seed,
        out=out,
        threads=1,
        device="cpu",
        compile="off",
        eval_every=0,
        eval_iters=0,
        eval_tokens=HELD_OUT_TOKENS,
        save_every=0,
        sample_every=0,
    )


def steps_of_schedule(recipe: str) -> int:
    """Steps of the recipe: as it says, or as many as fit into its minutes on this machine with all its cores."""
    config = load_recipe(recipe)
    if config.optim.decay_steps or not config.train.minutes:
        return config.optim.decay_steps or config.train.steps
    choices, _ = resolve(config, detect(), Ranks())
    torch.set_num_threads(choices.threads)
    data = open_data(config, None, Ranks(), Quiet())
    model = GPT(replace(config.model, vocab_size=data.tokenizer.vocab_size))
    return steps_for_minutes(config, choices, model, data)


def steps_in(seconds: float, recipe: str) -> int:
    """Steps of one thread in so many seconds, from the fastest stretch of a trial."""
    with tempfile.TemporaryDirectory() as folder:
        config = settings_of_a_run(recipe, seed=0, out=f"{folder}/trial")
        config = updated(config, {"steps": TRIAL_STEPS, "minutes": 0.0, "log_every": 10}, where="trial")
        train(config)
        _, rates = read_run(f"{folder}/trial").series("tokens_per_second")
    return max(1, int(OF_THE_TIME * seconds * rates.max() / tokens_per_step(config)))


def run(recipe: str, plan: Row, seed: int) -> Row:
    """One seed, trained in a directory that is then deleted. `decay_steps` gives it the first part of the schedule."""
    with tempfile.TemporaryDirectory() as folder:
        started, started_computing = time.perf_counter(), time.process_time()
        config = settings_of_a_run(recipe, seed=seed, out=f"{folder}/run")
        schedule = {"steps": plan["steps"], "minutes": 0.0, "decay_steps": plan["schedule_steps"]}
        outcome = train(updated(config, schedule, where="band"))
        record = read_run(outcome.run)
        steps, losses = record.series("mean_loss")
        _, norms = record.series("gradient_norm")
        logged = steps % plan["log_every"] == 0
        return {
            "seed": seed,
            "plan": plan,
            "mean_loss": [round(loss, 5) for loss in losses[logged].tolist()],
            "gradient_norm": [round(norm, 5) for norm in norms[logged].tolist()],
            "held_out_loss": round(outcome.held_out.loss, 5),
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - started_computing, 1),
            "commit": commit(),
            "hardware": f"{cpu_name()}, 1 thread",
        }


def commit() -> str:
    """The commit of the code, marked where it was changed since; the bands themselves are no code."""
    git = ["git", "-C", str(BANDS)]
    name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout
    changes = [*git, "status", "--porcelain", "--", ":/src", ":(exclude,top)src/quillgpt/evaluate/bands/*.json"]
    is_dirty = subprocess.run(changes, capture_output=True, text=True, check=True).stdout != ""
    return name.strip() + ("-dirty" if is_dirty else "")


def rows(results: Path, plan: Row) -> list[Row]:
    """The finished runs of a plan, in the order of their seeds."""
    wanted = in_todays_settings(plan)
    found = [row for row in read_metrics(results) if in_todays_settings(row["plan"]) == wanted]
    return sorted(found, key=lambda row: row["seed"])


def append(results: Path, row: Row) -> None:
    """Add a row, on a line of its own even if a killed process left half a line."""
    content = results.read_bytes() if results.exists() else b""
    is_torn = content != b"" and not content.endswith(b"\n")
    files.append_line(results, ("\n" if is_torn else "") + json.dumps(row, allow_nan=False))


def made(recipe: str, plan: Row, rows: list[Row]) -> quillgpt.evaluate.bands.Band:
    """The band of finished runs."""
    about = {
        "recipe": recipe,
        "settings": plan["settings"],
        "fingerprint": plan["fingerprint"],
        "data": plan["data"],
        "optim": plan["optim"],
        "schedule_steps": plan["schedule_steps"],
        "seeds": [row["seed"] for row in rows],
        "commit": ", ".join(dict.fromkeys(row["commit"] for row in rows)),
        "hardware": ", ".join(dict.fromkeys(row["hardware"] for row in rows)),
        "made_with": {
            "command": f"python benchmarks/reference_bands.py {recipe}",
            "torch": plan["torch"],
            "dtype": plan["dtype"],
        },
    }
    return make_band(
        np.array([row["mean_loss"] for row in rows]),
        np.array([row["gradient_norm"] for row in rows]),
        about=about,
        tokens_per_step=plan["settings"]["tokens_per_step"],
        log_every=plan["log_every"],
    )


def packed(content: Row) -> str:
    """JSON with a line for each entry, so that a column of numbers does not fill a screen."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
