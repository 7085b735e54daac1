"""The settings of a run: frozen dataclasses are the schema, TOML files are recipes, other names are aliases.

One file a group; a setting is a field, its default and the sentence below it. Names are unique over all groups, so that
a recipe and the command line may write them flat. Where 0 or "auto" means "decide here", `train/resolve.py` decides
and says so.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quillgpt.config.checks import check
from quillgpt.config.data import DataConfig
from quillgpt.config.lora import LoraConfig
from quillgpt.config.model import ModelConfig
from quillgpt.config.optim import OptimConfig
from quillgpt.config.train import TrainConfig
from quillgpt.errors import ConfigError, nearest, shown

Scalar = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run is made from; saved with it as config.toml, which is a recipe again.

    For example:
        config = quillgpt.RunConfig(model=quillgpt.ModelConfig(n_layer=2))
        print(config.model.n_layer, config.optim.lr)  # 2 0.0006
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    """The shape of a GPT; the defaults are GPT-2 124M [Radford 2019, Table 2]."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        train, context_length = self.train, self.model.context_length
        divides = train.batch_tokens % context_length == 0
        check(train, "batch_tokens", divides, f"a multiple of context_length = {context_length}")
        is_stated_once = not (train.batch_tokens and train.gradient_accumulation_steps)
        check(train, "batch_tokens", is_stated_once, "0, because gradient_accumulation_steps sets the global batch")
        has_base = train.init != "scratch" or not self.lora.lora_rank
        check(self.lora, "lora_rank", has_base, "0, because init = scratch has no weights to adapt; --init names them")


GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "lora": LoraConfig,
}


@functools.cache
def meanings() -> dict[str, str]:
    """Every setting's name and its one-line meaning, read from the sentences below the fields above."""
    found = {}
    for group in GROUPS.values():
        statements = [node for node in ast.walk(ast.parse(inspect.getsource(group))) if isinstance(node, ast.stmt)]
        for first, second in itertools.pairwise(statements):
            match first, second:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                    found[name] = meaning
    return found


@functools.cache
def group_of() -> dict[str, str]:
    """Every setting's name and the group (and TOML table) it belongs to."""
    return {setting.name: group for group, schema in GROUPS.items() for setting in dataclasses.fields(schema)}


def flatten(config: RunConfig) -> dict[str, Scalar]:
    """All settings of a run by their names."""
    return {name: getattr(getattr(config, group), name) for name, group in group_of().items()}


def updated(config: RunConfig, settings: Mapping[str, Any], *, where: str) -> RunConfig:
    """The same run with some settings changed; an unknown name or an impossible value names `where` it stood."""
    groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    for name, value in settings.items():
        if name not in group_of():
            meant = nearest(name, group_of())
            raise ConfigError(f"{where}: unknown setting {shown(name)}{meant}; `quill train --help` lists all")
        if name == "compile" and isinstance(value, bool):
            value = "on" if value else "off"
        groups[group_of()[name]][name] = value
    try:
        changed = {name: dataclasses.replace(getattr(config, name), **new) for name, new in groups.items() if new}
        return dataclasses.replace(config, **changed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
