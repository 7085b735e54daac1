"""Adapters: exactly the frozen model at first, W + s B A afterwards, and gradients for nothing else."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.config import LoraConfig, ModelConfig, OptimConfig
from quillgpt.errors import ConfigError
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import LoraLinear, adapter_parameter_count, adapter_tensors, add_adapters, merge_adapters
from quillgpt.model.mlp import MLPS
from quillgpt.model.sizes import SIZES, flops_per_token, parameter_count
from quillgpt.optim import build_optimizer, state_tensors

RANK, SCALE = 3, 2.5
LORA = LoraConfig(lora_rank=RANK, lora_alpha=SCALE * RANK)
NewGPT = Callable[..., GPT]
KINDS: dict[str, dict[str, object]] = {
    **{f"mlp {name}": {"mlp": name} for name in MLPS},
    **{f"attention {name}": {"attention": name} for name in ATTENTION},
    "modern": {"norm": "rmsnorm", "position": "rotary", "qk_norm": True, "bias": False},
}


def adapted(model: GPT, *, is_trained: bool = True) -> GPT:
    """A copy of the model with adapters, trained (random) or new."""
    model = copy.deepcopy(model)
    add_adapters(model, LORA)
    if is_trained:
        for tensor in adapter_tensors(model).values():
            tensor.normal_(std=0.3)
    return model


def merged_by_definition(model: GPT, adapters: dict[str, Tensor]) -> GPT:
    """A copy of the plain model whose weights are W + s B A, an outer product at a time, in numpy."""
    model = copy.deepcopy(model)
    for name, a in adapters.items():
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            b = adapters[f"{layer}.lora_b"].numpy()
            update = sum(np.outer(b[:, i], a.numpy()[i]) for i in range(RANK))
            model.get_parameter(f"{layer}.weight").data += SCALE * torch.from_numpy(np.asarray(update))
    return model


def loss_of(model: GPT, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def test_adapters_start_as_the_frozen_model_compute_w_plus_s_b_a_and_merge_exactly(
    subtests: pytest.Subtests, tiny_gpt: NewGPT, tokens: Tensor
) -> None:
    for kind, settings in KINDS.items():
        with subtests.test(kind), torch.no_grad():  # in training, norms and rotations are rounded otherwise
            model = tiny_gpt(**settings)
            names, plain = list(model.state_dict()), model(tokens)
            assert torch.equal(adapted(model, is_trained=False)(tokens), plain)
            with_adapters = adapted(model)
            expected = merged_by_definition(model, adapter_tensors(with_adapters))(tokens)
            assert (expected - plain).abs().max() > 0.01
            torch.testing.assert_close(with_adapters(tokens), expected, rtol=0, atol=1e-12)
            merge_adapters(model, adapter_tensors(with_adapters), LORA)
            torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-12)
            assert list(model.state_dict()) == names
            assert not [module for module in model.modules() if isinstance(module, LoraLinear)]
            assert all(parameter.requires_grad for parameter in model.parameters())


def test_merging_rounds_once_and_draws_no_random_numbers(tiny_gpt: NewGPT) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_gpt().to(dtype)
        adapters, generator_state = adapter_tensors(adapted(model)), torch.get_rng_state()
        in_float64 = {name: tensor.double() for name, tensor in adapters.items()}
        exact = merged_by_definition(copy.deepcopy(model).double(), in_float64).state_dict()
        merge_adapters(model, adapters, LORA)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, exact[name].to(dtype)), name
        assert torch.equal(torch.get_rng_state(), generator_state)


def test_gradients_are_projections_of_the_gradient_of_the_merged_weight(
    subtests: pytest.Subtests, tiny_gpt: NewGPT, tokens: Tensor
) -> None:
    """By the chain rule dL/dB = s dL/dW A^T and dL/dA = s B^T dL/dW, at the weight W + s B A."""
    for kind, settings in KINDS.items():
        for is_trained in (False, True):
            with subtests.test(kind, is_trained=is_trained):
                model = tiny_gpt(**settings)
                with_adapters = adapted(model, is_trained=is_trained)
                merged = merged_by_definition(model, adapter_tensors(with_adapters))
                loss_of(with_adapters, tokens).backward()
                loss_of(merged, tokens).backward()
                for name, layer in with_adapters.named_modules():
                    if isinstance(layer, LoraLinear):
                        gradient = merged.get_parameter(f"{name}.weight").grad
                        assert gradient is not None
                        expected = SCALE * gradient @ layer.lora_a.T, SCALE * layer.lora_b.T @ gradient
                        got = layer.lora_b.grad, layer.lora_a.grad
                        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_every_linear_layer_of_the_blocks_is_adapted_and_nothing_else(
    subtests: pytest.Subtests, tiny_gpt: NewGPT
) -> None:
    for kind, settings in KINDS.items():
        with subtests.test(kind):
            model = tiny_gpt(**settings, tied_head=False)
            linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
            with_adapters = adapted(model)
            found = {name for name, module in with_adapters.named_modules() if isinstance(module, LoraLinear)}
            assert found == linear - {"head"}
            assert {"blocks.1.attention.qkv", "blocks.0.mlp.project"} <= found
            trainable = {name: part for name, part in with_adapters.named_parameters() if part.requires_grad}
            assert trainable.keys() == {f"{name}.{part}" for name in found for part in ("lora_a", "lora_b")}
            assert trainable.keys() == adapter_tensors(with_adapters).keys()
            assert with_adapters.state_dict().keys() - trainable.keys() == model.state_dict().keys()
            assert adapter_parameter_count(model.config, RANK) == sum(part.numel() for part in trainable.values())


def test_only_adapters_have_gradients_and_optimizer_state_and_change(tiny_gpt: NewGPT, tokens: Tensor) -> None:
    model = adapted(tiny_gpt(), is_trained=False)
    adapters, before = set(adapter_tensors(model)), copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, min_lr=0.0))
    for _ in range(3):
        loss_of(model, tokens).backward()
        assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == adapters
        optimizer.step()
    assert {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])} == adapters
    assert {name.rpartition(".")[0] for name in state_tensors(optimizer, model)} == adapters


def test_the_seed_decides_a_whose_products_have_the_size_of_x_and_b_is_zero(tiny_gpt: NewGPT) -> None:
    model, adapters = tiny_gpt(n_embd=64), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        adapters.append(adapter_tensors(adapted(model, is_trained=False)))
    first, same, other = adapters
    for name, tensor in first.items():
        is_a = name.endswith("lora_a")
        assert torch.equal(tensor, same[name])
        assert torch.equal(tensor, other[name]) is not is_a
        assert is_a or not tensor.any()
    a = torch.cat([tensor.flatten() * tensor.shape[1] ** 0.5 for name, tensor in first.items() if "lora_a" in name])
    assert a.std().item() == pytest.approx(1.0, rel=0.1)


def test_a_rank_above_the_smallest_side_is_refused(tiny_gpt: NewGPT) -> None:
    for rank in (1, 16):
        add_adapters(tiny_gpt(), LoraConfig(lora_rank=rank))
    for rank in (17, 1000):
        with pytest.raises(ConfigError, match=rf"^invalid lora_rank: {rank} \(must be at most 16"):
            add_adapters(tiny_gpt(), LoraConfig(lora_rank=rank))


def test_adapters_of_another_rank_or_model_are_not_merged(tiny_gpt: NewGPT) -> None:
    model = tiny_gpt()
    adapters, before = adapter_tensors(adapted(model)), copy.deepcopy(model.state_dict())
    incomplete = {name: tensor for name, tensor in adapters.items() if "blocks.0." in name}
    transposed = {name: tensor.T for name, tensor in adapters.items()}
    for wrong in (incomplete, transposed, {}):
        with pytest.raises(ValueError, match=r"blocks\.\d\..*lora_[ab]: got .*, expected \("):
            merge_adapters(model, wrong, LORA)
    with pytest.raises(ValueError, match="got"):
        merge_adapters(model, adapters, LoraConfig(lora_rank=RANK + 1))
    with pytest.raises(ValueError, match="expected none"):
        merge_adapters(adapted(model), adapters, LORA)  # they would count twice
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_gpt2_has_twelve_times_four_adapters() -> None:
    layers = [(768, 3 * 768), (768, 768), (768, 4 * 768), (4 * 768, 768)]
    assert adapter_parameter_count(SIZES["gpt2"], 8) == 12 * 8 * sum(a + b for a, b in layers) == 1_179_648


def test_a_frozen_weight_costs_four_operations_a_token_and_an_adapters_weight_six() -> None:
    config = ModelConfig(n_layer=2, n_head=2, n_embd=16, context_length=12, vocab_size=67)
    attention, weights = 12 * 2 * 16 * 12, parameter_count(config) - 12 * 16
    assert flops_per_token(config) == 6 * weights + attention
    assert flops_per_token(config, 3) == 4 * weights + 6 * adapter_parameter_count(config, 3) + attention
