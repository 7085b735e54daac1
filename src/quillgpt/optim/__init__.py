"""The menu of optimizers. To add one: a file with `build(named_parameters, settings) -> Optimizer`, and a line below.

Values of its state are tensors. Each step sets a group's rate to lr times its `lr_ratio` (1 if it has none), and the
`momentum` of a group that has one. State is saved under the parameter's name (`blocks.0.mlp.expand.weight.exp_avg`),
never under an index, so that a checkpoint survives a change of grouping.
"""

from collections.abc import Callable, Mapping

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
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], settings: OptimConfig
) -> None:
    """Put back the `PARAMETER.KEY` tensors of an optimizer of the same settings that has stepped.

    Names, shapes, dtypes and values are checked first, because the fused kernels check nothing: a tensor that is
    missing, left over, or of another shape is a `CheckpointError`.
    """
    expected = _state_after_a_step(model, settings)
    if different := sorted(expected.keys() ^ tensors.keys()):
        what = "is missing" if different[0] in expected else f"does not belong to {settings.optimizer} and this model"
        raise CheckpointError(f"{different[0]} {what}")
    parameters = dict(_trainable(model))
    for name, probe in expected.items():
        value, parameter = tensors[name], parameters[name.rpartition(".")[0]]
        shape = tuple(parameter.shape) if probe.dim() else ()
        if (value.dtype, tuple(value.shape)) != (probe.dtype, shape):
            got, dtype = f"{value.dtype} of shape {tuple(value.shape)}", probe.dtype
            raise CheckpointError(f"{name} is {got}, expected {dtype} of shape {shape}".replace("torch.", ""))
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} has values that are not finite")
    for name, value in tensors.items():
        parameter, _, key = name.rpartition(".")
        optimizer.state[parameters[parameter]][key] = value.to(parameters[parameter].device)


def _state_after_a_step(model: nn.Module, settings: OptimConfig) -> dict[str, Tensor]:
    """The state of the same optimizer over tiny parameters: names of its tensors, their dtypes, which are scalars."""
    tiny = [
        (name, nn.Parameter(torch.zeros((3,) * parameter.dim(), dtype=parameter.dtype)))
        for name, parameter in _trainable(model)
    ]
    optimizer = OPTIMIZERS[settings.optimizer](tiny, settings)
    for _, parameter in tiny:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {f"{name}.{key}": value for name, parameter in tiny for key, value in optimizer.state[parameter].items()}


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, momentum: float) -> None:
    """Set learning rate and momentum of the next step; the rate of a group with an `lr_ratio` is multiplied by it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)
        if "momentum" in group:
            group["momentum"] = momentum


def _trainable(model: nn.Module) -> NamedParameters:
    """The trainable parameters with their names; a tied weight appears once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
