"""`quill train RECIPE --seeds N`: the same run with N seeds, one after the other, each in OUT-seed-SEED.

Each is an ordinary run. After a stop the same command continues: finished runs are skipped. With `minutes` the steps
measured for the first run are those of all, because runs of different lengths are not repeats.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING

from quillgpt.config import RunConfig, flatten, updated
from quillgpt.errors import ConfigError, Interrupted, NonFiniteError, Stopped
from quillgpt.run_dir import RunDirectory

if TYPE_CHECKING:
    from quillgpt.lab.run_record import RunRecord
    from quillgpt.training.screen import Screen

FLAG = "--seeds"
MAX_SEEDS = 1000

logger = logging.getLogger(__name__)


def repeats(config: RunConfig, origins: Mapping[str, str], recipe: str, seeds: int) -> list[RunConfig]:
    """Return the settings of N runs with consecutive seeds; existing runs with other settings are a `ConfigError`."""
    from quillgpt.distributed import ranks_from_environment

    if ranks_from_environment().is_distributed:
        raise ConfigError(f"{FLAG} does not work under torchrun; start each run separately with --seed and --out")
    if config.train.eval_only:
        raise ConfigError(f"{FLAG} trains, and eval_only does not; use one of them")
    base = Path(config.train.out)
    if origins.get("out") == "recipe's name":  # repeats of a run keep its name
        name = base.name.removesuffix("-again") if recipe != base.name else base.name
        base = base.with_name(re.sub(r"-seed-\d+$", "", name))
    if origins.get("out", "").startswith("flag") and RunDirectory(base).config.exists():
        created = f"{base}-seed-{config.train.seed}, ..."
        raise ConfigError(f"{base} contains a run; {FLAG} creates {created}: use another --out")
    configs = []
    for seed in range(config.train.seed, config.train.seed + seeds):
        repeat = updated(config, {"seed": seed, "out": f"{base}-seed-{seed}"}, where=FLAG)
        if (record := _record_of(repeat)) is not None:
            _check_same_settings(repeat, record)
        configs.append(repeat)
    return configs


def run_repeats(configs: list[RunConfig], new_screen: "Callable[[], Screen]") -> list[str]:
    """Train the runs in turn; return the directories of those that diverged. A signal ends the sequence."""
    from quillgpt.training.loop import train
    from quillgpt.training.signals import stopping_at_once

    diverged: list[str] = []
    again = "run the same command again to continue"
    with stopping_at_once(f"stopped between two runs; {again}"):
        for number, config in enumerate(configs, start=1):
            if config.train.minutes and (number > 1 or _record_of(config) is None):
                steps = _measured_steps(configs)
                config = updated(config, {"steps": steps, "minutes": 0.0}, where=FLAG) if steps else config
            title = f"run {number} of {len(configs)}, seed {config.train.seed}: {config.train.out}"
            if is_finished(config) and not config.train.fresh:
                logger.info("%s is finished", title)
                continue
            logger.info("%s", title)
            try:
                outcome = train(config, new_screen())
            except NonFiniteError as error:  # the runs of other seeds may stay finite
                diverged.append(config.train.out)
                logger.error("%s", error)
                continue
            if outcome.signal and number < len(configs):
                kind = Interrupted if outcome.signal == SIGINT else Stopped
                raise kind(f"stopped after run {number} of {len(configs)}, which is finished; {again}")
    return diverged


def summary(configs: list[RunConfig]) -> list[str]:
    """Return lines with mean and standard deviation over the runs, and the command that compares them with others."""
    from quillgpt.lab.compare.groups import grouped
    from quillgpt.lab.compare.measures import BITS_PER_BYTE, VALIDATION, at_the_end
    from quillgpt.lab.run_record import read_run

    groups, _ = grouped([read_run(config.train.out) for config in configs])
    lines = []
    for group in groups:
        loss, bits = (at_the_end([group], name).samples[0] for name in (VALIDATION, BITS_PER_BYTE))
        if loss.n:
            seeds = f"{loss.n} seeds, mean ± standard deviation" if loss.n > 1 else f"seed {next(iter(loss.by_seed))}"
            lines.append(f"val loss: {loss} nats per token, {bits} bits per byte ({seeds})")
    out = Path(configs[0].train.out)
    ours, other = out.with_name(f"{out.name.rpartition('-seed-')[0]}-seed-*"), out.with_name("OTHER")
    command = f"quill compare '{ours}' '{other}-seed-*'"
    return [*lines, f"next: the same with one thing changed and --out {other}, then {command}"]


def plan_lines(configs: list[RunConfig]) -> list[str]:
    """Return a line for each run, for --dry-run."""
    lines = [f"{len(configs)} runs, one after the other"]
    if configs[0].train.minutes:
        lines[0] += f"; the steps that fit into {configs[0].train.minutes:g} minutes are measured once, for all"
    for config in configs:
        step = _last_step(config)
        status = "finished" if is_finished(config) else f"from step {step:,}"
        lines.append(f"  seed {config.train.seed}  {config.train.out}  {status if step else 'new'}")
    return lines


def is_finished(config: RunConfig) -> bool:
    """Whether a run has done all its steps, and its metrics have the last line."""
    from quillgpt.lab.compare.measures import is_finished as has_last_line
    from quillgpt.lab.compare.measures import planned_steps

    record, minutes = _record_of(config), config.train.minutes
    if record is None or not has_last_line(record):
        return False
    steps = planned_steps(record) if minutes else config.train.steps
    return _last_step(config) >= steps and (not minutes or record.config.train.minutes in (minutes, 0.0))


def _record_of(config: RunConfig) -> "RunRecord | None":
    """The record of the run, if it exists."""
    from quillgpt.lab.run_record import read_run

    return read_run(config.train.out) if RunDirectory(Path(config.train.out)).config.is_file() else None


def _check_same_settings(config: RunConfig, record: "RunRecord") -> None:
    """Refuse to continue a run with other settings, except its length: the runs would not be repeats."""
    from quillgpt.lab.compare.groups import NOT_THE_EXPERIMENT

    now, ignored = flatten(config), {*NOT_THE_EXPERIMENT, "steps", "minutes"}
    changed = {name: value for name, value in record.settings.items() if value != now[name] and name not in ignored}
    if changed:
        difference = ", ".join(f"{name} {then!r} -> {now[name]!r}" for name, then in changed.items())
        raise ConfigError(
            f"{record.path} was started with other settings: {difference}; repeats differ only in the seed: "
            "use the former settings, or another --out"
        )
    step = _last_step(config)
    if not config.train.minutes and step > config.train.steps:
        raise ConfigError(f"{record.path} has done {step:,} steps, more than --steps {config.train.steps:,}")


def _last_step(config: RunConfig) -> int:
    """The step of the run's last checkpoint; 0 without one."""
    from quillgpt.checkpoint import committed

    checkpoints = committed(RunDirectory(Path(config.train.out)))
    return checkpoints[-1].step if checkpoints else 0


def _measured_steps(configs: list[RunConfig]) -> int:
    """The steps that were measured for `minutes` in the first of the runs that has started; 0 if none has."""
    from quillgpt.lab.compare.measures import planned_steps

    return next((planned_steps(record) for record in map(_record_of, configs) if record is not None), 0)
