"""Runs grouped by everything but the seed: what counts as the same experiment, and what does not.

Settings count as they were resolved: the global batch in tokens, the steps even if `minutes` chose them, the data by
its fingerprint. So does the code, by the fingerprint of its files, else by its commit. Where a run writes, what it
logs and evaluates, and the machine it ran on do not count.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quillgpt.config import Scalar, group_of
from quillgpt.lab.run_record import BOOKKEEPING, RunRecord

NOT_THE_EXPERIMENT = BOOKKEEPING | {"device", "threads", "compile_backend", "dist_backend", "dist_timeout_seconds"}
"""settings that do not change the experiment: what is recorded of a run, and the machine"""

MACHINE = {
    "device": ("runtime", "device"),
    "threads": ("runtime", "threads"),
    "ranks": ("runtime", "world_size"),
    "processor": ("processor",),
    "torch": ("torch",),
}
"""what is reported of the machine, and its place in environment.json; it changes the seconds, not the experiment"""

CODE_DIGITS = 18  # of a fingerprint, or a commit of 12 with "-dirty"


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Runs of one experiment, one per seed; `name` is a letter, A is the baseline.

    `left_out`: runs whose losses are not used because they did not finish.
    """

    name: str
    runs: tuple[RunRecord, ...]
    left_out: tuple[RunRecord, ...] = ()

    @property
    def label(self) -> str:
        """The run's name, or what the names of several have in common."""
        return common_name([run.name for run in self.runs])

    @property
    def experiment(self) -> dict[str, Scalar]:
        """The settings that all of its runs share."""
        return experiment(self.runs[0])

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs, in order."""
        return [seed_of(run) for run in self.runs]


def seed_of(run: RunRecord) -> int:
    """The seed of initial weights, data order and dropout."""
    return run.config.train.seed


def grouped(records: Sequence[RunRecord]) -> tuple[list[RunGroup], list[str]]:
    """The groups in the order of their first run, and a note for each run left out because it repeats a seed."""
    runs: dict[tuple[tuple[str, Scalar], ...], list[RunRecord]] = {}
    notes = []
    for record in records:
        same = runs.setdefault(tuple(sorted(experiment(record).items())), [])
        twin = next((other for other in same if seed_of(other) == seed_of(record)), None)
        if twin is None:
            same.append(record)
        else:
            notes.append(f"{record.path} is left out: the same experiment and seed {seed_of(twin)} as {twin.path}")
    return [RunGroup(name=letters(i), runs=tuple(members)) for i, members in enumerate(runs.values())], notes


def experiment(record: RunRecord) -> dict[str, Scalar]:
    """The settings by which a run is grouped, resolved as its environment.json says."""
    environment = record.environment
    settings = {name: value for name, value in record.settings.items() if name not in {"seed", *NOT_THE_EXPERIMENT}}
    replaced: set[str] = set()
    resolved: dict[str, Scalar] = {}
    rows = _entry(environment, "runtime", "global_batch_size")
    if isinstance(rows, int):
        replaced |= {"batch_size", "gradient_accumulation_steps"}
        resolved["batch_tokens"] = rows * record.config.model.context_length
    steps = _entry(environment, "steps")
    if isinstance(steps, int):
        replaced |= {"minutes"}
        resolved["steps"] = steps
    if record.data_fingerprint:
        replaced |= {name for name, group in group_of().items() if group == "data"}
        resolved["data"] = record.data_fingerprint[:12]
        resolved["tokenizer"] = str(_entry(environment, "data", "tokenizer"))
    if isinstance(vocab_size := _entry(environment, "data", "vocab_size"), int):
        resolved["vocab_size"] = vocab_size
    if isinstance(tokens := _entry(environment, "data", "val_tokens"), int):
        replaced |= {"eval_iters"}
        resolved["eval_tokens"] = tokens
    for name in ("dtype", "compile"):
        if isinstance(value := _entry(environment, "runtime", name), bool | str):
            resolved[name] = value
    names = [environment.get(name) for name in ("code", "commit")]
    known = [str(name)[:CODE_DIGITS] for name in names if name not in (None, "", "unknown")]
    resolved["code"] = known[0] if known else f"quillgpt {environment.get('quillgpt', '')}"
    return {name: value for name, value in settings.items() if name not in replaced} | resolved


def differing(groups: Sequence[RunGroup]) -> dict[str, list[Scalar]]:
    """The settings in which the groups' experiments differ, with the value of each group; "" if it has none."""
    experiments = [group.experiment for group in groups]
    names = dict.fromkeys(name for settings in experiments for name in settings)
    columns = {name: [settings.get(name, "") for settings in experiments] for name in names}
    return {name: values for name, values in columns.items() if len(set(map(repr, values))) > 1}


def differing_machines(groups: Sequence[RunGroup]) -> dict[str, list[str]]:
    """What the groups' machines differ in, with the distinct values of each group's runs."""
    columns: dict[str, list[str]] = {}
    for name, place in MACHINE.items():
        values = [dict.fromkeys(str(_entry(run.environment, *place)) for run in group.runs) for group in groups]
        if len({value for group_values in values for value in group_values}) > 1:
            columns[name] = [", ".join(group_values) for group_values in values]
    return columns


def common_name(names: Sequence[str]) -> str:
    """One name for several: debug-seed-1, debug-seed-2 -> debug; a-1, a-2 -> a-*; a, b, c -> a and 2 more."""
    bases = {name.rpartition("-seed-")[0] or name for name in names}
    if len(names) == 1 or len(bases) == 1:
        return names[0] if len(names) == 1 else bases.pop()
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(names), max(names), strict=False))
    prefix = "".join(first for first, _ in pairs)
    return f"{prefix}*" if prefix else f"{names[0]} and {len(names) - 1} more"


def letters(number: int) -> str:
    """0 to A, 25 to Z, 26 to AA, as spreadsheet columns."""
    first, last = divmod(number, 26)
    return (letters(first - 1) if first else "") + chr(ord("A") + last)


def _entry(environment: Mapping[str, Any], *place: str) -> object:
    """An entry of environment.json; "" if it is missing."""
    found: Any = environment
    for name in place:
        found = found.get(name, "") if isinstance(found, Mapping) else ""
    return found
