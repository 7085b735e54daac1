"""Runs grouped by everything but the seed: what counts as the same experiment, and what does not.

The settings count, each as it was resolved where the run's record tells: the global batch in tokens however it is
cut, the steps whether asked for or chosen by `minutes`, the data by its fingerprint wherever it lay. So does the code,
because a change of it may be what is compared: by the fingerprint of its files, else by its commit. Where a run writes,
what it logs, how often it is looked at, and the machine it ran on do not.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quillgpt.config import Scalar, group_of
from quillgpt.run_record import OF_THE_RECORDS, RunRecord

SEED = "seed"
NOT_THE_EXPERIMENT = OF_THE_RECORDS | {"device", "threads", "compile_backend", "dist_backend", "dist_timeout_seconds"}
"""settings that leave the experiment what it is: what is kept of a run, and the machine"""

BESIDES = {
    "device": ("choices", "device"),
    "threads": ("choices", "threads"),
    "ranks": ("choices", "world_size"),
    "processor": ("processor",),
    "torch": ("torch",),
}
"""what is told of the machine, and where a run's environment.json has it: it changes the seconds, not the experiment"""


CODE_DIGITS = 18  # of a fingerprint, or a commit of 12 with "-dirty"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one experiment, a seed each; `name` is a letter, A is the baseline."""

    name: str
    runs: tuple[RunRecord, ...]
    left_out: tuple[RunRecord, ...] = ()
    """those of its runs whose losses are not used, because they did not come to their end"""

    @property
    def label(self) -> str:
        """The run's name, or what the names of several have in common before the seed."""
        return common_name([run.name for run in self.runs])

    @property
    def experiment(self) -> dict[str, Scalar]:
        """What all of its runs have in common."""
        return experiment(self.runs[0])

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs, in their order."""
        return [seed_of(run) for run in self.runs]


def seed_of(run: RunRecord) -> int:
    """What the run's initial weights, order of data and dropout began from."""
    return run.config.train.seed


def grouped(records: Sequence[RunRecord]) -> tuple[list[Group], list[str]]:
    """The groups in the order of their first run, and a line for each run that repeats a seed and is left out."""
    runs: dict[tuple[tuple[str, Scalar], ...], list[RunRecord]] = {}
    notes = []
    for record in records:
        same = runs.setdefault(tuple(sorted(experiment(record).items())), [])
        twin = next((other for other in same if seed_of(other) == seed_of(record)), None)
        if twin is None:
            same.append(record)
        else:
            notes.append(f"{record.path} is left out: the same experiment and seed {seed_of(twin)} as {twin.path}")
    groups = [Group(name=letters(number), runs=tuple(members)) for number, members in enumerate(runs.values())]
    return groups, notes


def experiment(record: RunRecord) -> dict[str, Scalar]:
    """The settings by which a run is grouped, as resolved where its environment.json tells."""
    settings = {name: value for name, value in record.settings.items() if name not in {SEED, *NOT_THE_EXPERIMENT}}
    environment = record.environment
    rows = _found(environment, "choices", "rows")
    if isinstance(rows, int):
        settings = _without(settings, "batch_size", "gradient_accumulation_steps")
        settings["batch_tokens"] = rows * record.config.model.context_length
    steps = _found(environment, "steps")
    if isinstance(steps, int):
        settings = _without(settings, "minutes")
        settings["steps"] = steps
    if record.data_fingerprint:
        settings = {name: value for name, value in settings.items() if group_of()[name] != "data"}
        settings["data"] = record.data_fingerprint[:12]
        settings["tokenizer"] = str(_found(environment, "data", "tokenizer"))
    for name, place in (("vocab_size", "vocab_size"), ("eval_tokens", "held_out_tokens")):
        value = _found(environment, "data", place)
        if isinstance(value, int):
            settings[name] = value
            settings.pop("eval_iters" if name == "eval_tokens" else "", None)
    for name in ("dtype", "compile"):
        value = _found(environment, "choices", name)
        if isinstance(value, bool | str):
            settings[name] = value
    return settings | {"code": _code(environment)}


def differing(groups: Sequence[Group]) -> dict[str, list[Scalar]]:
    """What the groups' experiments differ in: the setting, and its value in each group; empty where it has none."""
    experiments = [group.experiment for group in groups]
    names = dict.fromkeys(name for settings in experiments for name in settings)
    columns = {name: [settings.get(name, "") for settings in experiments] for name in names}
    return {name: values for name, values in columns.items() if len(set(map(repr, values))) > 1}


def differing_besides(groups: Sequence[Group]) -> dict[str, list[str]]:
    """What the groups' machines differ in: its name, and for each group the values of its runs, each once."""
    columns: dict[str, list[str]] = {}
    for name, place in BESIDES.items():
        values = [dict.fromkeys(str(_found(run.environment, *place)) for run in group.runs) for group in groups]
        if len({value for group_values in values for value in group_values}) > 1:
            columns[name] = [", ".join(group_values) for group_values in values]
    return columns


def common_name(names: Sequence[str]) -> str:
    """What names have in common: debug-seed-1 and debug-seed-2 are debug, a-1 and a-2 are a-*, others the first ..."""
    bases = {name.rpartition("-seed-")[0] or name for name in names}
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(names), max(names), strict=False))
    beginning = "".join(first for first, _ in same)
    if len(names) == 1:
        return names[0]
    if len(bases) == 1:
        return bases.pop()
    return f"{beginning}*" if beginning else f"{names[0]} and {len(names) - 1} more"


def letters(number: int) -> str:
    """0 to A, 25 to Z, 26 to AA: as a spreadsheet counts."""
    first, last = divmod(number, 26)
    return (letters(first - 1) if first else "") + chr(ord("A") + last)


def _code(environment: Mapping[str, Any]) -> str:
    """The fingerprint of the code that ran; its commit, or its version, where the record has none."""
    for name in ("code", "commit"):
        if environment.get(name) not in (None, "", "unknown"):
            return str(environment[name])[:CODE_DIGITS]
    return f"quillgpt {environment.get('quillgpt', '')}"


def _found(environment: Mapping[str, Any], *place: str) -> object:
    """What environment.json has at a place; "" where it has nothing there."""
    found: Any = environment
    for name in place:
        found = found.get(name, "") if isinstance(found, Mapping) else ""
    return found


def _without(settings: Mapping[str, Scalar], *names: str) -> dict[str, Scalar]:
    return {name: value for name, value in settings.items() if name not in names}
