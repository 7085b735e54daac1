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
    """A copy of the model with adapters, which have learned something, or nothing yet."""
    model = copy.deepcopy(model)
    add_adapters(model, LORA)
    if is_trained:
        for tensor in adapter_tensors(model).values():
            tensor.normal_(std=0.3)
    return model


def by_definition(model: GPT, adapters: dict[str, Tensor]) -> GPT:
    """A copy of the plain model whose weights are W + s B A, an outer product at a time, in numpy."""
    model = copy.deepcopy(model)
    for name, a in adapters.items():
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            b = adapters[f"{layer}.lora_b"].numpy()
            update = sum(np.outer(b[:, i], a.numpy()[i]) for i in range(RANK))
            weight = model.get_parameter(f"{layer}.weight")
            weight.data += SCALE * torch.from_numpy(np.asarray(update))
    return model


def loss_of(model: GPT, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()  # while they train, norms and rotations are rounded otherwise
def test_adapters_begin_as_exactly_the_frozen_model(kind: str, tiny_gpt: NewGPT, tokens: Tensor) -> None:
    model = tiny_gpt(**KINDS[kind])
    assert torch.equal(adapted(model, is_trained=False)(tokens), model(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_w_plus_s_b_a(kind: str, tiny_gpt: NewGPT, tokens: Tensor) -> None:
    model = tiny_gpt(**KINDS[kind])
    with_adapters = adapted(model)
    expected = by_definition(model, adapter_tensors(with_adapters))(tokens)
    assert (expected - model(tokens)).abs().max() > 0.01
    assert torch.allclose(with_adapters(tokens), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_is_exact_and_leaves_a_plain_model(kind: str, tiny_gpt: NewGPT, tokens: Tensor) -> None:
    model = tiny_gpt(**KINDS[kind])
    with_adapters, names = adapted(model), list(model.state_dict())
    merge_adapters(model, adapter_tensors(with_adapters), LORA)
    assert torch.allclose(model(tokens), with_adapters(tokens), rtol=0, atol=1e-12)
    assert list(model.state_dict()) == names
    assert not [module for module in model.modules() if isinstance(module, LoraLinear)]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_merging_and_taking_away_again_is_the_former_model(tiny_gpt: NewGPT) -> None:
    model = tiny_gpt()
    before, adapters = copy.deepcopy(model.state_dict()), adapter_tensors(adapted(model))
    merge_adapters(model, adapters, LORA)
    taken_away = {name: -tensor if name.endswith("lora_b") else tensor for name, tensor in adapters.items()}
    merge_adapters(model, taken_away, LORA)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, before[name], rtol=0, atol=1e-15), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_rounds_once(tiny_gpt: NewGPT, dtype: torch.dtype) -> None:
    model = tiny_gpt().to(dtype)
    adapters = adapter_tensors(adapted(model))
    exact = by_definition(copy.deepcopy(model).double(), {name: a.double() for name, a in adapters.items()})
    merge_adapters(model, adapters, LORA)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, exact.state_dict()[name].to(dtype)), name


def test_merging_draws_no_random_numbers(tiny_gpt: NewGPT) -> None:
    model = tiny_gpt()
    adapters, state = adapter_tensors(adapted(model)), torch.get_rng_state()
    merge_adapters(model, adapters, LORA)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_projections_of_the_whole_matrix_gradient(kind: str, tiny_gpt: NewGPT, tokens: Tensor) -> None:
    """By the chain rule dL/dB = s dL/dW A^T and dL/dA = s B^T dL/dW, at the weight W + s B A."""
    model = tiny_gpt(**KINDS[kind])
    for is_trained in (False, True):
        with_adapters = adapted(model, is_trained=is_trained)
        whole = by_definition(model, adapter_tensors(with_adapters))
        loss_of(with_adapters, tokens).backward()
        loss_of(whole, tokens).backward()
        for name, layer in with_adapters.named_modules():
            if isinstance(layer, LoraLinear):
                gradient = whole.get_parameter(f"{name}.weight").grad
                assert gradient is not None
                assert layer.lora_a.grad is not None
                assert layer.lora_b.grad is not None
                for got, expected in (
                    (layer.lora_b.grad, SCALE * gradient @ layer.lora_a.T),
                    (layer.lora_a.grad, SCALE * layer.lora_b.T @ gradient),
                ):
                    assert torch.allclose(got, expected, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_of_the_blocks_is_adapted_and_nothing_else(kind: str, tiny_gpt: NewGPT) -> None:
    model = tiny_gpt(**KINDS[kind], tied_head=False)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    with_adapters = adapted(model)
    found = {name for name, module in with_adapters.named_modules() if isinstance(module, LoraLinear)}
    assert found == linear - {"head"}
    assert {"blocks.1.attention.qkv", "blocks.0.mlp.project"} <= found
    trainable = {name for name, parameter in with_adapters.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{name}.{part}" for name in found for part in ("lora_a", "lora_b")}
    assert trainable == adapter_tensors(with_adapters).keys()
    assert with_adapters.state_dict().keys() - trainable == model.state_dict().keys()


def test_what_is_frozen_has_no_gradient_no_optimizer_state_and_never_changes(tiny_gpt: NewGPT, tokens: Tensor) -> None:
    model = adapted(tiny_gpt(), is_trained=False)
    adapters = set(adapter_tensors(model))
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, min_lr=0.0))
    for _ in range(3):
        loss_of(model, tokens).backward()
        assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == adapters
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == adapters
    assert {name.rpartition(".")[0] for name in state_tensors(optimizer, model)} == adapters


def test_the_same_seed_draws_the_same_adapters(tiny_gpt: NewGPT) -> None:
    model, drawn = tiny_gpt(n_embd=64), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(adapter_tensors(adapted(model, is_trained=False)))
    same, other = ([torch.equal(drawn[0][name], more[name]) for name in drawn[0]] for more in drawn[1:])
    assert all(same)
    assert other.count(False) == len(other) / 2  # every A; B is zeros
    a = torch.cat([tensor.flatten() * tensor.shape[1] ** 0.5 for tensor in drawn[0].values() if len(tensor) == RANK])
    assert a.std().item() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(("rank", "fits"), [(1, True), (16, True), (17, False), (1000, False)])
def test_a_rank_that_no_layer_has_is_refused(tiny_gpt: NewGPT, rank: int, fits: bool) -> None:
    model = tiny_gpt()
    if fits:
        add_adapters(model, LoraConfig(lora_rank=rank))
        return
    with pytest.raises(ConfigError, match=f"lora_rank = {rank} is not possible: expected at most 16"):
        add_adapters(model, LoraConfig(lora_rank=rank))


def test_adapters_of_another_rank_or_model_are_not_merged(tiny_gpt: NewGPT) -> None:
    model = tiny_gpt()
    adapters = adapter_tensors(adapted(model))
    before = copy.deepcopy(model.state_dict())
    smaller = {name: tensor for name, tensor in adapters.items() if "blocks.0." in name}
    other_shapes = {name: tensor.T for name, tensor in adapters.items()}
    for wrong in (smaller, other_shapes, {}):
        with pytest.raises(ValueError, match=r"blocks\.\d\..*lora_[ab]: got .*, expected \("):
            merge_adapters(model, wrong, LORA)
    with pytest.raises(ValueError, match="got"):
        merge_adapters(model, adapters, LoraConfig(lora_rank=RANK + 1))
    with pytest.raises(ValueError, match="expected none"):
        merge_adapters(adapted(model), adapters, LORA)  # they would count twice
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_adapter_parameters(kind: str, tiny_gpt: NewGPT) -> None:
    model = adapted(tiny_gpt(**KINDS[kind]))
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert adapter_parameter_count(model.config, RANK) == count


def test_gpt2_has_twelve_times_four_adapters() -> None:
    layers = [(768, 3 * 768), (768, 768), (768, 4 * 768), (4 * 768, 768)]
    assert adapter_parameter_count(SIZES["gpt2"], 8) == 12 * 8 * sum(a + b for a, b in layers) == 1_179_648


def test_a_frozen_weight_costs_four_operations_a_token_and_an_adapters_number_six() -> None:
    config = ModelConfig(n_layer=2, n_head=2, n_embd=16, context_length=12, vocab_size=67)
    attention = 12 * 2 * 16 * 12
    weights = parameter_count(config) - 12 * 16
    assert flops_per_token(config) == 6 * weights + attention
    assert flops_per_token(config, 3) == 4 * weights + 6 * adapter_parameter_count(config, 3) + attention
