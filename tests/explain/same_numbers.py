"""What the files of explain/ are held to: the numbers of the real model, optimizer, loop and sampler, in float64.

Each function of `CHECKS` takes a module that has the names of explain/gpt2.py and fails where its numbers differ.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from quillgpt.config import ModelConfig, OptimConfig
from quillgpt.model.gpt import GPT
from quillgpt.optim import build_optimizer
from quillgpt.optim.schedules import learning_rate
from quillgpt.sample.generator import Generator, continued
from quillgpt.sample.sampling import sample_generator
from quillgpt.sample.settings import SamplingSettings
from quillgpt.train.guard import Guard
from quillgpt.train.resolve import Choices
from quillgpt.train.update import apply_update, gradients, wrap

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 12, "vocab_size": 67}
OPTIM = {"lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 5, "beta1": 0.8, "beta2": 0.97, "eps": 1e-7}
OPTIM |= {"weight_decay": 0.3, "gradient_clip": 0.8}
SPREADS = {"token_embedding.weight": 0.4, "position_embedding.weight": 2.0, "final_norm.bias": 0.05}
STEPS, ROWS, NEW_TOKENS = 20, 4, 40
CHOICES = Choices(
    device="cpu",
    dtype="fp32",  # that is, no autocast: the weights are float64 and so is everything made from them
    threads=1,
    compile=False,
    compile_backend="inductor",
    matmul_precision="highest",
    dist_backend="gloo",
    rows=ROWS,
    batch_size=3,  # so that the real loop adds up two micro-batches
    world_size=1,
)


@functools.cache
def initial_model() -> GPT:
    """The real model as it begins."""
    torch.manual_seed(7)
    return GPT(ModelConfig(**SHAPE))


def new_model() -> GPT:
    """The real model in float64, with weights so large that every part of it matters."""
    model = GPT(ModelConfig(**SHAPE)).double()
    randomness = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter[: SHAPE["vocab_size"]].normal_(std=SPREADS.get(name, 0.8), generator=randomness)
    return model


def weights_of(model: GPT) -> dict[str, Tensor]:
    """A copy of the model's weights by name, without the padding of the vocabulary."""
    copies = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    copies["token_embedding.weight"] = copies["token_embedding.weight"][: SHAPE["vocab_size"]].clone()
    return {name: weight.requires_grad_() for name, weight in copies.items()}


@functools.cache
def batches() -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets (ROWS, T) of every step."""
    randomness = torch.Generator().manual_seed(2)
    rows = torch.randint(SHAPE["vocab_size"], (STEPS, ROWS, SHAPE["context_length"] + 1), generator=randomness)
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
    """Losses, gradient norms and the weights after the steps, by the real loop's own functions."""
    model, settings = new_model(), OptimConfig(**OPTIM)
    wrapped, optimizer, guard = wrap(model, CHOICES), build_optimizer(model, settings), Guard()
    losses, norms = [], []
    for step, (inputs, targets) in enumerate(batches()):
        total = gradients(
            wrapped, inputs, targets, choices=CHOICES, target_count=targets.numel(), seed=0, step=step, rank=0
        )
        losses.append(total.item() / targets.numel())
        lr = learning_rate(step, STEPS, settings)
        norm, applied = apply_update(
            wrapped,
            optimizer,
            guard,
            loss=losses[-1],
            lr=lr,
            momentum=0.0,
            gradient_clip=settings.gradient_clip,
        )
        assert applied
        norms.append(norm)
    return losses, norms, weights_of(model)


@functools.cache
def expected_tokens(temperature: float, top_k: int) -> list[int]:
    """What the real generator writes after a prompt, well beyond the context."""
    settings = SamplingSettings(temperature=temperature, top_k=top_k, max_new_tokens=NEW_TOKENS, seed=5)
    return [int(tokens) for tokens in continued(Generator(new_model()), [1, 2, 3], settings, [0])]


def config_of(module: Any, **changes: Any) -> Any:
    """The file's settings with the test's shape."""
    settings = {**SHAPE, **OPTIM, "steps": STEPS, "batch_size": ROWS, **changes}
    known = {field.name for field in dataclasses.fields(module.Config)}
    return module.Config(**{name: value for name, value in settings.items() if name in known})


def same(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    """Fail unless the largest difference is at most `tolerance` times the largest value."""
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


def same_initial_weights(module: Any) -> None:
    """The same seed gives the same weights, to the bit."""
    torch.manual_seed(7)
    ours = module.initial_weights(config_of(module))
    expected = weights_of(initial_model())
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in expected.items())


def same_logits_and_loss(module: Any) -> None:
    """Logits and loss to 1e-10."""
    logits, loss, _ = expected_forward()
    inputs, targets = batches()[0]
    found = module.gpt(inputs, weights_of(new_model()), config_of(module))
    same(found, logits, 1e-10)
    same(module.cross_entropy(found, targets), loss, 1e-10)


def same_gradients(module: Any) -> None:
    """The gradient of every weight to 1e-8."""
    inputs, targets = batches()[0]
    weights = weights_of(new_model())
    module.cross_entropy(module.gpt(inputs, weights, config_of(module)), targets).backward()
    for name, expected in expected_forward()[2].items():
        same(weights[name].grad, expected, 1e-8)


def same_training(module: Any) -> None:
    """The weights after twenty steps to 1e-9."""
    weights, given = weights_of(new_model()), iter(batches())
    original, module.batch = module.batch, lambda tokens, config: next(given)
    try:
        losses = list(module.train(weights, torch.empty(0), config_of(module)))
    finally:
        module.batch = original
    expected_losses, _, expected = expected_training()
    same(torch.tensor(losses), torch.tensor(expected_losses), 1e-5)  # the real loop adds losses up in float32
    for name, weight in expected.items():
        same(weights[name], weight, 1e-9)


def same_tokens(module: Any, *, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The tokens that are written after a prompt, with the same random numbers."""
    config, weights = config_of(module, **ours), weights_of(new_model())
    with torch.random.fork_rng():
        torch.set_rng_state(sample_generator(5, 0).get_state())
        found = list(module.sample([1, 2, 3], NEW_TOKENS, weights, config))
    assert found == expected_tokens(**theirs)


def same_greedy_tokens(module: Any) -> None:
    """One candidate is what the real model calls temperature 0."""
    same_tokens(module, ours={"temperature": 1.0, "top_k": 1}, theirs={"temperature": 0.0, "top_k": 0})


def same_drawn_tokens(module: Any) -> None:
    """Temperature and top-k."""
    settings = {"temperature": 1.3, "top_k": 9}
    same_tokens(module, ours=settings, theirs=settings)


def same_batches(module: Any) -> None:
    """Every piece of the text can be drawn, to its very end, and targets are the next tokens; nothing else is drawn."""
    tokens = torch.arange(SHAPE["context_length"] + 3) * 10
    torch.manual_seed(0)
    inputs, targets = module.batch(tokens, config_of(module, batch_size=64))
    pieces = tokens.unfold(0, SHAPE["context_length"] + 1, 1)  # (3, T + 1): all there are
    drawn = torch.cat([inputs, targets[:, -1:]], dim=1)
    assert torch.equal(drawn.unique(dim=0), pieces)
    assert torch.equal(targets[:, :-1], inputs[:, 1:])


def same_softmax(module: Any) -> None:
    """Also of scores whose exponential is infinite."""
    scores = torch.tensor([[1000.0, 999.0, -1000.0], [-1000.0, -1000.0, -math.inf]], dtype=torch.float64)
    same(module.softmax(scores), scores.softmax(dim=-1), 1e-10)


CHECKS: dict[str, Callable[[ModuleType], None]] = {
    "initial weights": same_initial_weights,
    "softmax": same_softmax,
    "logits and loss": same_logits_and_loss,
    "gradients": same_gradients,
    "batches": same_batches,
    "training": same_training,
    "greedy tokens": same_greedy_tokens,
    "drawn tokens": same_drawn_tokens,
}


def failing_checks(module: ModuleType) -> list[str]:
    """The names of the checks that the module does not pass."""
    failing = []
    for name, check in CHECKS.items():
        try:
            check(module)
        except (AssertionError, RuntimeError, ValueError):
            failing.append(name)
    return failing
