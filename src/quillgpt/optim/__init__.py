"""The menu of optimizers. To add one: a file with `build(named_parameters, settings) -> Optimizer`, and a line below.

Values of its state are tensors. Each step sets a group's rate to lr times its `lr_ratio` (1 if it has none), and the
`momentum` of a group that has one. State is saved under the parameter's name (`blocks.0.mlp.expand.weight.exp_avg`),
never under an index, so that a checkpoint survives a change of grouping.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from quillgpt.config import OptimConfig
from quillgpt.errors import CheckpointError, pick
from quillgpt.optim import adamw, muon

__all__ = ["OPTIMIZERS", "build_optimizer", "load_state_tensors", "set_rates", "state_tensors"]

NamedParameters = list[tuple[str, nn.Parameter]]

OPTIMIZERS: Mapping[str, Callable[[NamedParameters, OptimConfig], torch.optim.Optimizer]] = {
    "adamw": adamw.build,
    "muon": muon.build,
}


def build_optimizer(model: nn.Module, settings: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of the settings, over the model's trainable parameters."""
    return pick(OPTIMIZERS, settings.optimizer, "optimizer")(_trainable(model), settings)


def state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `PARAMETER.KEY` tensors."""
    return {
        f"{name}.{key}": value
        for name, parameter in _trainable(model)
        for key, value in optimizer.state[parameter].items()
    }


def load_state_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Put `PARAMETER.KEY` tensors back into the optimizer; a parameter it does not have is a `CheckpointError`."""
    parameters = dict(_trainable(model))
    for full_name, value in tensors:
        name, _, key = full_name.rpartition(".")
        if name not in parameters:
            raise CheckpointError(f"the optimizer state has {full_name}, which is not a parameter of this model")
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device)


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, momentum: float) -> None:
    """Set learning rate and momentum of the next step; the rate of a group with an `lr_ratio` is multiplied by it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)
        if "momentum" in group:
            group["momentum"] = momentum


def _trainable(model: nn.Module) -> NamedParameters:
    """The trainable parameters with their names; a tied weight appears once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
