"""`quill train RECIPE --seeds N`: the same run with N seeds, one after the other, each in OUT-seed-SEED.

Each is an ordinary run. The same command goes on where it was stopped: finished runs are skipped. With `minutes` the
first run's measurement decides the steps of all, because repeats of different length are not repeats.
"""

import re
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING

from quillgpt.cli.output import run_console
from quillgpt.cli.prepare import progress_display
from quillgpt.cli.settings import Settings, without_number
from quillgpt.config import RunConfig, flatten, updated
from quillgpt.errors import ConfigError, Interrupted, NonFiniteError, Stopped
from quillgpt.run_dir import RunDirectory

if TYPE_CHECKING:
    from quillgpt.run_record import RunRecord

FLAG = "--seeds"
MOST = 1000


def without_seeds(arguments: list[str]) -> tuple[list[str], int]:
    """The other arguments, and how many seeds --seeds asks for, 0 without it; it is no setting of a run."""
    return without_number(arguments, FLAG, most=MOST)


def repeats(settings: Settings, seeds: int) -> list[RunConfig]:
    """The runs to do, of consecutive seeds; what cannot be repeated, and runs of other settings, are refused."""
    from quillgpt.distributed import ranks_from_environment

    config = settings.config
    if ranks_from_environment().is_parallel:
        raise ConfigError(f"{FLAG} does not work under torchrun; start each run by itself with --seed and --out")
    if config.train.eval_only:
        raise ConfigError(f"{FLAG} trains, and eval_only does not; leave one of them out")
    base = base_directory(settings)
    if settings.origins.get("out", "").startswith("flag") and RunDirectory(base).config.exists():
        raise ConfigError(
            f"{base} holds a run; {FLAG} makes {base}-seed-{config.train.seed}, ...: choose another --out"
        )
    found = []
    for seed in range(config.train.seed, config.train.seed + seeds):
        out = f"{base}-seed-{seed}"
        one = updated(config, {"seed": seed, "out": out}, where=FLAG)
        check_same_settings(one, recorded(one))
        found.append(one)
    return found


def base_directory(settings: Settings) -> Path:
    """What the run directories begin with: --out, or the recipe's name; a run repeated keeps its own."""
    base = Path(settings.config.train.out)
    if settings.origins.get("out") == "recipe's name":
        name = base.name.removesuffix("-again") if settings.recipe != base.name else base.name
        base = base.with_name(re.sub(r"-seed-\d+$", "", name))
    return base


def recorded(config: RunConfig) -> "RunRecord | None":
    """What is there of a run already."""
    from quillgpt.run_record import read_run

    return read_run(config.train.out) if RunDirectory(Path(config.train.out)).config.is_file() else None


def check_same_settings(config: RunConfig, record: "RunRecord | None") -> None:
    """Refuse to go on with a run of other settings: then the repeats would not be repeats. Length may change."""
    if record is None:
        return
    from quillgpt.compare.groups import NOT_THE_EXPERIMENT

    free = {*NOT_THE_EXPERIMENT, "steps", "minutes"}
    now = flatten(config)
    changed = {name: (then, now[name]) for name, then in record.settings.items() if then != now[name]}
    difference = ", ".join(f"{name} {then!r} -> {new!r}" for name, (then, new) in changed.items() if name not in free)
    if difference:
        raise ConfigError(
            f"{record.path} was begun with other settings: {difference}; repeats differ in nothing but the seed: "
            "use the former settings, or another --out"
        )
    steps = last_step(config)
    if not config.train.minutes and steps > config.train.steps:
        raise ConfigError(f"{record.path} has done {steps:,} steps, more than --steps {config.train.steps:,}")


def last_step(config: RunConfig) -> int:
    """The step of the run's last checkpoint; 0 without one."""
    from quillgpt.checkpoint import committed

    found = committed(RunDirectory(Path(config.train.out)))
    return found[-1].step if found else 0


def is_done(config: RunConfig, record: "RunRecord | None") -> bool:
    """Whether a run has nothing left to do, and its record says how it ended."""
    from quillgpt.compare.readings import is_finished, planned_steps

    if record is None or not is_finished(record):
        return False
    minutes = config.train.minutes
    steps = planned_steps(record) if minutes else config.train.steps
    return last_step(config) >= steps and (not minutes or record.config.train.minutes in (minutes, 0.0))


def steps_already_chosen(configs: list[RunConfig]) -> int:
    """The steps that `minutes` came to, from the first of the runs that has been begun; 0 where none has."""
    from quillgpt.compare.readings import planned_steps

    records = [record for record in map(recorded, configs) if record is not None]
    return next((planned_steps(record) for record in records), 0)


def run_repeats(configs: list[RunConfig]) -> int:
    """Train the runs in turn and print what came of them; a signal ends the sequence, to be continued."""
    from quillgpt.train.loop import train
    from quillgpt.train.progress import Terminal
    from quillgpt.train.signals import stopping_at_once

    console = run_console()
    diverged: list[str] = []
    again = "run the same command again to continue"
    with stopping_at_once(f"stopped between two runs; {again}"):
        for place, config in enumerate(configs):
            if (
                config.train.minutes
                and (place or recorded(config) is None)
                and (steps := steps_already_chosen(configs))
            ):
                config = updated(config, {"steps": steps, "minutes": 0.0}, where=FLAG)
            heading = f"run {place + 1} of {len(configs)}, seed {config.train.seed}: {config.train.out}"
            if is_done(config, recorded(config)) and not config.train.fresh:
                console.print(f"{heading} is finished", style="dim", soft_wrap=True)
                continue
            console.print(heading, style="bold", soft_wrap=True)
            try:
                outcome = train(config, Terminal(console, progress_display))
            except NonFiniteError as error:  # the next seed may stay finite, and that this one did not is a result
                diverged.append(config.train.out)
                console.print(str(error), style="bold red", soft_wrap=True)
                continue
            if outcome.signal and place + 1 < len(configs):
                kind = Interrupted if outcome.signal == SIGINT else Stopped
                raise kind(f"stopped after run {place + 1} of {len(configs)}, which is finished; {again}")
    for line in summary(configs):
        console.print(line, soft_wrap=True)
    if diverged:
        raise NonFiniteError(f"{len(diverged)} of {len(configs)} runs diverged: {', '.join(diverged)}")
    return 0


def summary(configs: list[RunConfig]) -> list[str]:
    """Mean and standard deviation over the runs, and how they are compared with others."""
    from quillgpt.cli.compare import figure
    from quillgpt.compare.groups import grouped
    from quillgpt.compare.readings import BITS_PER_BYTE, HELD_OUT, at_the_end
    from quillgpt.run_record import read_run

    groups, _ = grouped([read_run(config.train.out) for config in configs])
    lines = []
    for group in groups:
        loss, bits = (at_the_end([group], name).samples[0] for name in (HELD_OUT, BITS_PER_BYTE))
        if loss.n:
            seeds = f"{loss.n} seeds, mean ± standard deviation" if loss.n > 1 else f"seed {next(iter(loss.by_seed))}"
            lines.append(f"held out: {figure(loss)} nats per token, {figure(bits)} bits per byte ({seeds})")
    out = Path(configs[0].train.out)
    base = out.name.rpartition("-seed-")[0]
    theirs, others = out.with_name(f"{base}-seed-*"), out.with_name("OTHER-seed-*")
    return [
        *lines,
        f"next: the same with one thing changed and --out {out.with_name('OTHER')}, then "
        f"quill compare '{theirs}' '{others}'",
    ]


def plan(configs: list[RunConfig]) -> list[str]:
    """The runs that would be done, a line each, for --dry-run."""
    lines = [f"{len(configs)} runs, one after the other"]
    if configs[0].train.minutes:
        lines[0] += f"; as many steps as fit into {configs[0].train.minutes:g} minutes are measured once, for all"
    for config in configs:
        done = "finished" if is_done(config, recorded(config)) else f"from step {last_step(config):,}"
        lines.append(f"  seed {config.train.seed}  {config.train.out}  {done if last_step(config) else 'new'}")
    return lines
