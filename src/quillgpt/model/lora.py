"""LoRA: next to each frozen linear layer of the blocks a small trainable one, of two thin matrices [Hu 2021, 4.1].

All linear layers of a block get one, not only queries and values, which is needed to do as well as training all weights
[Dettmers 2023, section 4]. Embeddings, norms and the head are frozen. The layers' own parameters keep their names, so
that the weights of a plain model can be loaded, and the adapters can be merged into a plain model.
"""

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.config import LoraConfig, ModelConfig
from quillgpt.errors import require
from quillgpt.model.gpt import GPT


class LoraLinear(nn.Module):
    """x W^T + b + s x A^T B^T with s = alpha / rank; W (out, in) and b are frozen, A (rank, in) and B (out, rank) not.

    B is initialized as zeros, so that the layer starts equal to the frozen one; A from N(0, 1 / in), so that A x is of
    the size of x.
    """

    def __init__(self, frozen: nn.Linear, settings: LoraConfig) -> None:
        super().__init__()
        self.scale = settings.lora_alpha / settings.lora_rank
        self.weight, self.bias = frozen.weight, frozen.bias
        shape_a, shape_b = _shapes(frozen, settings.lora_rank)
        self.lora_a = nn.Parameter(frozen.weight.new_empty(shape_a).normal_(std=1 / math.sqrt(frozen.in_features)))
        self.lora_b = nn.Parameter(frozen.weight.new_zeros(shape_b))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        low_rank = F.linear(x, self.lora_a)  # (..., rank)
        return F.linear(x, self.weight, self.bias) + F.linear(low_rank * self.scale, self.lora_b)


def add_adapters(model: GPT, settings: LoraConfig) -> None:
    """Freeze the model and add an adapter to each linear layer of its blocks, initialized by torch's generator.

    A rank above the smallest side of these layers is a `ConfigError`.
    """
    layers, rank = _linear_layers(model), settings.lora_rank
    smallest = min(min(layer.weight.shape) for layer in layers.values())
    require("lora_rank", rank, rank <= smallest, f"at most {smallest}, the smallest side of the model's linear layers")
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, LoraLinear(layer, settings))


def adapter_tensors(model: GPT) -> dict[str, Tensor]:
    """The adapters' A and B by name; empty for a model without adapters."""
    return {name: tensor for name, tensor in model.state_dict().items() if name.endswith((".lora_a", ".lora_b"))}


@torch.no_grad()
def merge_adapters(model: GPT, adapters: Mapping[str, Tensor], settings: LoraConfig) -> None:
    """Add adapters to the weights of the plain model that they were trained with: W + (alpha / rank) B A.

    Computed in float64 and rounded once. Adapters of another model or rank are a `ValueError`.
    """
    layers = _linear_layers(model)
    expected = {}
    for name, layer in layers.items():
        expected[f"{name}.lora_a"], expected[f"{name}.lora_b"] = _shapes(layer, settings.lora_rank)
    got = {name: tuple(tensor.shape) for name, tensor in adapters.items()}
    if got != expected:
        name = min(dict(got.items() ^ expected.items()))
        raise ValueError(f"{name}: got {got.get(name, 'none')}, expected {expected.get(name, 'none')}")
    scale = settings.lora_alpha / settings.lora_rank
    for name, layer in layers.items():
        parts = (layer.weight, adapters[f"{name}.lora_b"], adapters[f"{name}.lora_a"])
        weight, b, a = (tensor.to("cpu", torch.float64) for tensor in parts)  # not every device has float64
        layer.weight.copy_(torch.addmm(weight, b, a, alpha=scale))


@functools.cache
def adapter_parameter_count(config: ModelConfig, rank: int) -> int:
    """Number of parameters of the adapters: rank * (in + out) for each linear layer of the blocks."""
    with torch.device("meta"):  # shapes without memory
        layers = _linear_layers(GPT(config))
    return sum(rank * sum(layer.weight.shape) for layer in layers.values())


def _linear_layers(model: GPT) -> dict[str, nn.Linear]:
    """The linear layers of the blocks by their names in the model."""
    return {f"blocks.{name}": part for name, part in model.blocks.named_modules() if isinstance(part, nn.Linear)}


def _shapes(layer: nn.Linear, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of A and B."""
    return (rank, layer.in_features), (layer.out_features, rank)
