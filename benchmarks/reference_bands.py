"""The reference band of a recipe: the interval of a healthy run's loss, from runs that differ only in their seed.

    python benchmarks/reference_bands.py debug                   # 8 seeds, at most 45 seconds each, two at a time
    python benchmarks/reference_bands.py all                     # every recipe with a band in the package
    python benchmarks/reference_bands.py python --seeds 12       # adds four to 8 finished seeds
    python benchmarks/reference_bands.py my.toml --out bands     # your own, for quill doctor RUN --band bands/my.json

Each finished run is a line in benchmarks/results/reference_bands/RECIPE.jsonl; runs of the same plan are not repeated,
so after a kill the same command continues. Each call makes the band, src/quillgpt/lab/bands/RECIPE.json, from the
lines. A changed recipe, other data or another torch makes another plan, which ignores the old lines.

The plan is made with the first run: the steps that take --seconds with one thread, after a short trial; for a recipe in
minutes, a schedule of the steps that they allow here with all cores. Or set --steps and --schedule-steps. Each run has
one thread, so that two concurrent runs do not disturb each other.
"""

import json
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import measuring
import numpy as np
import torch
import tyro
from measuring import NOTHING_KEPT, ONE_THREAD, Row

from quillgpt import files
from quillgpt.config import RunConfig, flatten, group_of, updated
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError
from quillgpt.lab import bands
from quillgpt.lab.bands.band import FEWEST_SEEDS, Band, defining_settings, make_band, tokens_per_step
from quillgpt.lab.run_record import read_run
from quillgpt.model.gpt import GPT
from quillgpt.recipes import recipe_config
from quillgpt.runtime import available_cores, cpu_name, detect, resolve
from quillgpt.training.calibrate import steps_for_minutes
from quillgpt.training.loop import train

BANDS = Path(bands.__file__).parent
RECIPES = ("debug", "one-layer", "modern-python", "modern-shakespeare-char", "nanogpt-cpu", "python", "gaussian-python")
RECIPES += ("gaussian-normalized-python", "gaussian-poly-python", "pointwise-python", "power-python", "polynomial")
RESULTS = measuring.RESULTS / "reference_bands"
SHARE_OF_TIME = 0.9  # the rest is for variation of the machine, saving and the last evaluation
VALIDATION_TOKENS = 20_000


def main(
    recipes: tyro.conf.Positional[tuple[str, ...]],
    seeds: int = FEWEST_SEEDS,
    seconds: float = 45.0,
    steps: int = 0,
    schedule_steps: int = 0,
    processes: int = min(2, available_cores()),
    out: Path = BANDS,
    results: Path = RESULTS,
) -> None:
    """Train the seeds that have no row yet, and write the band of each recipe.

    Args:
        recipes: names, .toml files, or all
        seeds: number of seeds 1, 2, ...
        seconds: maximum length of a run
        steps: of a run; 0: by --seconds
        schedule_steps: steps of the schedule; 0: the recipe's
        processes: concurrent runs
        out: folder of the bands
        results: folder of the finished runs
    """
    if seeds < FEWEST_SEEDS or not recipes:
        raise ConfigError(f"invalid seeds: {seeds} (must be >= {FEWEST_SEEDS})" if recipes else "give a RECIPE, or all")
    for recipe in RECIPES if recipes == ("all",) else recipes:
        started = time.perf_counter()
        rows_file = results / f"{Path(recipe).stem}.jsonl"
        plan = planned(recipe, rows_file, seconds, {"steps": steps, "schedule_steps": schedule_steps})
        finished = {row["seed"] for row in rows(rows_file, plan)}
        missing = [seed for seed in range(1, seeds + 1) if seed not in finished]
        print(f"{recipe}: {plan['steps']} of {plan['schedule_steps']} steps, seeds missing: {missing or 'none'}")
        calls = [(recipe, plan, seed) for seed in missing]
        measuring.in_processes(run, calls, rows_file, processes, outcome)
        path = out / f"{Path(recipe).stem}.json"
        band = made(Path(recipe).stem, plan, rows(rows_file, plan))
        files.write_text(path, packed(band.to_json()))
        points = f"{len(band.tokens)} points to step {band.steps}; at the last, loss {band.mean[-1]:.3f}"
        interval = f"interval {(band.high - band.low)[-1]:.3f} wide ({time.perf_counter() - started:.0f} s)"
        print(f"{recipe}: {path} has {points}, {interval}", flush=True)


def outcome(row: Row) -> str:
    losses = f"last loss {row['train_loss_mean'][-1]:.3f}, validation loss {row['val_loss']:.3f}"
    return f"seed {row['seed']}: {row['seconds']:.1f} s, {losses}"


def planned(recipe: str, results: Path, seconds: float, requested: dict[str, int]) -> Row:
    """The settings shared by the runs of a band; the steps are those of earlier rows if there are any."""
    config = settings_of_a_run(recipe, seed=1, out="runs/band")
    if not tokens_per_step(config):
        raise ConfigError(f"{recipe}: batch_size = 0 lets the machine choose the batch; a band needs it in the recipe")
    data = measuring.data_of(config)
    plan: Row = {
        "settings": defining_settings(config),
        "optim": optim_settings(config),
        "fingerprint": data.train.fingerprint,
        "data": f"source {config.data.source}, tokenizer {data.tokenizer.name}, Python {platform.python_version()}",
        "log_every": config.train.log_every,
        "torch": torch.__version__,
        "dtype": resolve(config, detect(), Ranks())[0].dtype,
    }
    given = {name: steps for name, steps in requested.items() if steps}
    for row in reversed(measuring.rows_in(results)):
        earlier = in_todays_settings(row["plan"])
        if earlier == earlier | plan | given:
            return earlier
    plan["schedule_steps"] = requested["schedule_steps"] or steps_of_schedule(recipe)
    affordable = requested["steps"] or measuring.steps_in(SHARE_OF_TIME * seconds, config, trial_steps=40)
    plan["steps"] = requested["steps"] or min(plan["schedule_steps"], affordable)
    plan["steps"] -= plan["steps"] % config.train.log_every
    return plan


def optim_settings(config: RunConfig) -> Row:
    return {name: value for name, value in flatten(config).items() if group_of()[name] == "optim"}


def in_todays_settings(plan: Row) -> Row:
    """A plan with the settings that are newer than it, at their defaults."""
    usual = RunConfig()
    settings = {"settings": defining_settings(usual) | plan["settings"], "optim": optim_settings(usual) | plan["optim"]}
    return plan | settings


def settings_of_a_run(recipe: str, *, seed: int, out: str) -> RunConfig:
    """The recipe with a seed and one thread, without checkpoints, evaluations and samples."""
    kept = {name: value for name, value in NOTHING_KEPT.items() if name != "log_every"}
    return recipe_config(recipe, **{**kept, **ONE_THREAD, "eval_tokens": VALIDATION_TOKENS, "seed": seed, "out": out})


def steps_of_schedule(recipe: str) -> int:
    """Steps of the recipe, or those that its minutes allow on this machine with all cores."""
    config = recipe_config(recipe)
    if config.optim.decay_steps or not config.train.minutes:
        return config.optim.decay_steps or config.train.steps
    runtime, _ = resolve(config, detect(), Ranks())
    torch.set_num_threads(runtime.threads)
    data = measuring.data_of(config)
    model = GPT(replace(config.model, vocab_size=data.tokenizer.vocab_size))
    return steps_for_minutes(config, runtime, model, data)


def run(recipe: str, plan: Row, seed: int) -> Row:
    """Train one seed; by `decay_steps` it follows the first part of the schedule."""
    with tempfile.TemporaryDirectory() as folder:
        started, started_computing = time.perf_counter(), time.process_time()
        config = settings_of_a_run(recipe, seed=seed, out=f"{folder}/run")
        schedule = {"steps": plan["steps"], "minutes": 0.0, "decay_steps": plan["schedule_steps"]}
        result = train(updated(config, schedule, where="band"))
        record = read_run(result.run)
        steps, losses = record.series("train_loss_mean")
        _, norms = record.series("grad_norm")
        logged = steps % plan["log_every"] == 0
        return {
            "seed": seed,
            "plan": plan,
            "train_loss_mean": [round(loss, 5) for loss in losses[logged].tolist()],
            "grad_norm": [round(norm, 5) for norm in norms[logged].tolist()],
            "val_loss": round(result.validation.loss, 5),
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - started_computing, 1),
            "commit": measuring.commit("src/quillgpt/lab/bands/*.json"),
            "hardware": f"{cpu_name()}, 1 thread",
        }


def rows(results: Path, plan: Row) -> list[Row]:
    todays = in_todays_settings(plan)
    found = [row for row in measuring.rows_in(results) if in_todays_settings(row["plan"]) == todays]
    return sorted(found, key=lambda row: row["seed"])


def made(recipe: str, plan: Row, rows: list[Row]) -> Band:
    about = {
        "recipe": recipe,
        **{name: plan[name] for name in ("settings", "fingerprint", "data", "optim", "schedule_steps")},
        "seeds": [row["seed"] for row in rows],
        "commit": ", ".join(dict.fromkeys(row["commit"] for row in rows)),
        "hardware": ", ".join(dict.fromkeys(row["hardware"] for row in rows)),
        "made_with": {"command": f"python benchmarks/reference_bands.py {recipe}"}
        | {name: plan[name] for name in ("torch", "dtype")},
    }
    losses, norms = (np.array([row[name] for row in rows]) for name in ("train_loss_mean", "grad_norm"))
    tokens = plan["settings"]["tokens_per_step"]
    return make_band(losses, norms, about=about, tokens_per_step=tokens, log_every=plan["log_every"])


def packed(content: Row) -> str:
    """JSON with one line for each entry."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    measuring.run_script(__doc__, main)
