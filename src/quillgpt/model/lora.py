"""LoRA: beside every frozen linear layer of the blocks a small trained one, made of two thin matrices [Hu 2021, 4.1].

All linear layers of a block get one, not only queries and values: that is what it takes to do as well as training all
weights [Dettmers 2023, section 4]. Embeddings, norms and the head are frozen. The layers' own parameters keep their
names, so that the weights of a plain model fit in, and what was learned can be added to a plain model.
"""

import functools
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.config import LoraConfig, ModelConfig
from quillgpt.errors import require
from quillgpt.model.gpt import GPT


class LoraLinear(nn.Module):
    """x W^T + b + s x A^T B^T with s = alpha / rank; W (out, in) and b are frozen, A (rank, in) and B (out, rank) not.

    B begins as zeros, so that the layer begins as the frozen one exactly; A is drawn from N(0, 1 / in), so that A x is
    of the size of x.
    """

    def __init__(self, frozen: nn.Linear, settings: LoraConfig) -> None:
        super().__init__()
        self.scale = settings.lora_alpha / settings.lora_rank
        self.weight, self.bias = frozen.weight, frozen.bias
        shape_a, shape_b = _shapes(frozen, settings.lora_rank)
        drawn = frozen.weight.new_empty(shape_a).normal_(std=1 / math.sqrt(frozen.in_features))
        self.lora_a = nn.Parameter(drawn)
        self.lora_b = nn.Parameter(frozen.weight.new_zeros(shape_b))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        low = F.linear(x, self.lora_a)  # (..., rank)
        return F.linear(x, self.weight, self.bias) + F.linear(low * self.scale, self.lora_b)


def add_adapters(model: GPT, settings: LoraConfig) -> None:
    """Freeze the model and put an adapter beside each linear layer of its blocks, drawn from torch's generator.

    A rank above the smallest side of these layers is a `ConfigError`.
    """
    layers = list(_linear_layers(model))
    most = min(min(layer.in_features, layer.out_features) for _, layer in layers)
    rank = settings.lora_rank
    require("lora_rank", rank, rank <= most, f"at most {most}, the smallest side of the model's linear layers")
    model.requires_grad_(False)
    for name, layer in layers:
        model.set_submodule(name, LoraLinear(layer, settings))


def adapter_tensors(model: GPT) -> dict[str, Tensor]:
    """The adapters' A and B by name; nothing for a model without them."""
    return {name: tensor for name, tensor in model.state_dict().items() if name.endswith((".lora_a", ".lora_b"))}


@torch.no_grad()
def merge_adapters(model: GPT, adapters: Mapping[str, Tensor], settings: LoraConfig) -> None:
    """Add adapters to the weights of the plain model that they were trained beside: W + (alpha / rank) B A.

    Computed in float64 and rounded once. Adapters of another model or rank are a `ValueError`.
    """
    layers = dict(_linear_layers(model))
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
    """How many numbers the adapters of a rank have: rank * (in + out) for each linear layer of the blocks."""
    with torch.device("meta"):  # shapes without memory
        model = GPT(config)
    return sum(rank * (layer.in_features + layer.out_features) for _, layer in _linear_layers(model))


def _linear_layers(model: GPT) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of the blocks with their names in the model."""
    for name, module in model.named_modules():
        if name.startswith("blocks.") and isinstance(module, nn.Linear):
            yield name, module


def _shapes(layer: nn.Linear, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of A and B."""
    return (rank, layer.in_features), (layer.out_features, rank)
