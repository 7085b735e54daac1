"""Checks that a module with the names of explain/gpt2.py computes, in float64, what the real code computes.

Each function of `CHECKS` raises an `AssertionError` where the numbers differ.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from quillgpt.config import ModelConfig, OptimConfig
from quillgpt.model.gpt import GPT
from quillgpt.optim import build_optimizer
from quillgpt.optim.schedules import learning_rate
from quillgpt.runtime import Runtime
from quillgpt.sample.engine import Generator, generate_tokens
from quillgpt.sample.sampling import sample_generator
from quillgpt.sample.settings import SamplingSettings
from quillgpt.training.step import Guard, apply_update, gradients, wrap

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 12, "vocab_size": 67}
OPTIM = {"lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 5, "beta1": 0.8, "beta2": 0.97, "eps": 1e-7}
OPTIM |= {"weight_decay": 0.3, "gradient_clip": 0.8}
SPREADS = {"token_embedding.weight": 0.4, "position_embedding.weight": 2.0, "final_norm.bias": 0.05}
STEPS, ROWS, NEW_TOKENS = 20, 4, 40
RUNTIME = Runtime(
    device="cpu",
    dtype="fp32",  # no autocast: weights are float64, and so is everything computed from them
    threads=1,
    compile=False,
    compile_backend="inductor",
    matmul_precision="highest",
    dist_backend="gloo",
    global_batch_size=ROWS,
    micro_batch_size=3,  # so that the real loop accumulates two micro-batches
    world_size=1,
)


def new_model() -> GPT:
    """The real model in float64, with weights large enough that every part of it matters."""
    model = GPT(ModelConfig(**SHAPE)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter[: SHAPE["vocab_size"]].normal_(std=SPREADS.get(name, 0.8), generator=generator)
    return model


def weights_of(model: GPT) -> dict[str, Tensor]:
    """A copy of the model's weights by name, without the padding of the vocabulary."""
    copies = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    copies["token_embedding.weight"] = copies["token_embedding.weight"][: SHAPE["vocab_size"]].clone()
    return {name: weight.requires_grad_() for name, weight in copies.items()}


@functools.cache
def batches() -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets (ROWS, T) of every step."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(SHAPE["vocab_size"], (STEPS, ROWS, SHAPE["context_length"] + 1), generator=generator)
    return [(row[:, :-1], row[:, 1:]) for row in rows]


@functools.cache
def expected_forward() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits, loss and gradients of the first batch."""
    model = new_model()
    inputs, targets = batches()[0]
    logits = model(inputs)
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    found["token_embedding.weight"] = found["token_embedding.weight"][: SHAPE["vocab_size"]]
    return logits.detach(), loss.detach(), found


@functools.cache
def expected_training() -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses, gradient norms and the weights after the steps, from the functions of the real loop."""
    model, settings = new_model(), OptimConfig(**OPTIM)
    wrapped, optimizer, guard = wrap(model, RUNTIME), build_optimizer(model, settings), Guard()
    losses, norms = [], []
    for step, (inputs, targets) in enumerate(batches()):
        count = targets.numel()
        total = gradients(wrapped, inputs, targets, runtime=RUNTIME, target_count=count, seed=0, step=step, rank=0)
        losses.append(total.item() / count)
        rates = {"lr": learning_rate(step, STEPS, settings), "momentum": 0.0}
        clip = settings.gradient_clip
        norm, applied = apply_update(wrapped, optimizer, guard, loss=losses[-1], gradient_clip=clip, **rates)
        assert applied
        norms.append(norm)
    return losses, norms, weights_of(model)


@functools.cache
def expected_tokens(temperature: float, top_k: int) -> list[int]:
    """What the real generator writes after a prompt, well beyond the context."""
    settings = SamplingSettings(temperature=temperature, top_k=top_k, max_new_tokens=NEW_TOKENS, seed=5)
    return [int(tokens) for tokens in generate_tokens(Generator(new_model()), [1, 2, 3], settings, [0])]


def config_of(module: Any, **changes: Any) -> Any:
    """The module's settings with the shape of the test."""
    settings = {**SHAPE, **OPTIM, "steps": STEPS, "batch_size": ROWS, **changes}
    known = {field.name for field in dataclasses.fields(module.Config)}
    return module.Config(**{name: value for name, value in settings.items() if name in known})


def same(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    """Fail unless the largest difference is at most `tolerance` times the largest value."""
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


def same_initial_weights(module: Any) -> None:
    """The same seed gives the same weights, bit for bit."""
    torch.manual_seed(7)
    expected = weights_of(GPT(ModelConfig(**SHAPE)))
    torch.manual_seed(7)
    ours = module.initial_weights(config_of(module))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in expected.items())


def same_forward_and_gradients(module: Any) -> None:
    """Logits and loss to 1e-10, the gradient of every weight to 1e-8."""
    logits, loss, gradients = expected_forward()
    inputs, targets = batches()[0]
    weights = weights_of(new_model())
    found = module.gpt(inputs, weights, config_of(module))
    same(found, logits, 1e-10)
    our_loss = module.cross_entropy(found, targets)
    same(our_loss, loss, 1e-10)
    our_loss.backward()
    for name, expected in gradients.items():
        same(weights[name].grad, expected, 1e-8)


def same_training(module: Any) -> None:
    """The weights after twenty steps to 1e-9."""
    weights, remaining = weights_of(new_model()), iter(batches())
    original, module.batch = module.batch, lambda tokens, config: next(remaining)
    try:
        losses = list(module.train(weights, torch.empty(0), config_of(module)))
    finally:
        module.batch = original
    expected_losses, _, expected = expected_training()
    same(torch.tensor(losses), torch.tensor(expected_losses), 1e-5)  # the real loop sums losses in float32
    for name, weight in expected.items():
        same(weights[name], weight, 1e-9)


def same_samples(module: Any) -> None:
    """The same tokens after a prompt from the same random numbers; top_k = 1 is temperature 0 of the real model."""
    drawn = {"temperature": 1.3, "top_k": 9}
    for ours, real in (({"temperature": 1.0, "top_k": 1}, {"temperature": 0.0, "top_k": 0}), (drawn, drawn)):
        weights, config = weights_of(new_model()), config_of(module, **ours)
        with torch.random.fork_rng():
            torch.set_rng_state(sample_generator(5, 0).get_state())
            found = list(module.sample([1, 2, 3], NEW_TOKENS, weights, config))
        assert found == expected_tokens(**real)


def same_batches(module: Any) -> None:
    """Every piece of the text can be drawn, up to its end, and nothing else; targets are the next tokens."""
    tokens = torch.arange(SHAPE["context_length"] + 3) * 10
    torch.manual_seed(0)
    inputs, targets = module.batch(tokens, config_of(module, batch_size=64))
    pieces = tokens.unfold(0, SHAPE["context_length"] + 1, 1)  # (3, T + 1): all of them
    drawn = torch.cat([inputs, targets[:, -1:]], dim=1)
    assert torch.equal(drawn.unique(dim=0), pieces)
    assert torch.equal(targets[:, :-1], inputs[:, 1:])


def same_softmax(module: Any) -> None:
    """Also of scores whose exponential is infinite."""
    scores = torch.tensor([[1000.0, 999.0, -1000.0], [-1000.0, -1000.0, -math.inf]], dtype=torch.float64)
    same(module.softmax(scores), scores.softmax(dim=-1), 1e-10)


CHECKS: tuple[Callable[[Any], None], ...] = (
    same_softmax,
    same_initial_weights,
    same_batches,
    same_forward_and_gradients,
    same_samples,
    same_training,
)


def is_caught(module: Any) -> bool:
    """Whether a check fails."""
    for check in CHECKS:
        try:
            check(module)
        except (AssertionError, RuntimeError, ValueError):
            return True
    return False
