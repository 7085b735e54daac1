"""Optimizers. To add one: a file with `build(named_parameters, settings) -> Optimizer`, and a line in `OPTIMIZERS`.

State is kept under the parameter's name (`blocks.0.mlp.expand.weight.exp_avg`), never under an index, so that a
checkpoint survives a change of grouping.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from quillgpt.config import OptimConfig
from quillgpt.errors import CheckpointError, pick
from quillgpt.optim import adamw, muon

NamedParameters = list[tuple[str, nn.Parameter]]

OPTIMIZERS: dict[str, Callable[[NamedParameters, OptimConfig], torch.optim.Optimizer]] = {
    "adamw": adamw.build,
    "muon": muon.build,
}


def build_optimizer(model: nn.Module, settings: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of the settings, over the model's trainable parameters."""
    build = pick(OPTIMIZERS, settings.optimizer, "optimizer")
    return build(named_parameters(model), settings)


def named_parameters(model: nn.Module) -> NamedParameters:
    """The trainable parameters with their names; a tied weight appears once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """The optimizer's state as `PARAMETER.KEY` tensors."""
    return {
        f"{name}.{key}": value
        for name, parameter in named_parameters(model)
        for key, value in optimizer.state[parameter].items()
    }


def load_state_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Put `PARAMETER.KEY` tensors back into the optimizer; a parameter it does not have is a `CheckpointError`."""
    parameters = dict(named_parameters(model))
    for full_name, value in tensors:
        name, _, key = full_name.rpartition(".")
        if name not in parameters:
            raise CheckpointError(f"the optimizer state holds {full_name}, which this model does not have")
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device)


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, momentum: float) -> None:
    """Use these for the next step; a group with an `lr_ratio` gets that many times the rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)
        if "momentum" in group:
            group["momentum"] = momentum


__all__ = ["OPTIMIZERS", "build_optimizer", "load_state_tensors", "set_rates", "state_tensors"]
