"""Muon for the blocks' matrices, AdamW at rates of its own for everything else [Jordan 2024].

Muon's step is the momentum with all its singular values brought close to 1, so that every direction of a matrix moves
alike. Newton-Schulz iterations do that with matrix products only. Matrices of equal shape are stacked and iterated
together: for small ones many products cost more in calls than in arithmetic (benchmarks/muon_step.py).
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from quillgpt.config import OptimConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""of a x + b x^3 + c x^5, steep at 0: put into itself five times it brings (0.01, 1] to about 0.7 to 1.2"""
ITERATIONS = 5
EPSILON = 1e-7

HEAD, BLOCKS, GATES = "head.", "blocks.", "value_embeddings.gates."

PARTS = {"attention.qkv.weight": 3}
"""matrices that are several side by side: queries, keys and values each get their own step"""


def build(parameters: list[tuple[str, nn.Parameter]], settings: OptimConfig) -> torch.optim.Optimizer:
    """Muon over the matrices inside blocks; AdamW over embeddings, head, and everything with fewer than two axes."""
    groups: dict[str, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in parameters:
        groups[_kind(name, parameter)].append((name, parameter))
    rates = {
        "embedding": settings.embedding_lr,
        "head": settings.head_lr,
        "scalar": settings.scalar_lr,
        "matrix": settings.lr,
    }
    described = []
    for kind, members in groups.items():
        described.append(
            {
                "params": [parameter for _, parameter in members],
                "kind": kind,
                "parts": [_parts(name) for name, _ in members],
                "lr": rates[kind] or settings.lr,
                "lr_ratio": (rates[kind] or settings.lr) / settings.lr if settings.lr else 1.0,
                "weight_decay": settings.weight_decay if kind == "matrix" else 0.0,
            }
        )
    return MuonWithAdamW(described, settings)


def _kind(name: str, parameter: nn.Parameter) -> str:
    if parameter.dim() < 2 or name.startswith(GATES):
        return "scalar"
    if name.startswith(HEAD):
        return "head"
    return "matrix" if name.startswith(BLOCKS) else "embedding"


def _parts(name: str) -> int:
    return next((count for ending, count in PARTS.items() if name.endswith(ending)), 1)


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer of two rules, a subclass because loss scalers and wrappers ask for torch's class.

    A group of kind "matrix" follows Muon, the others AdamW. State is kept by parameter: `momentum_buffer`, or AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], settings: OptimConfig) -> None:
        super().__init__(groups, {"lr": settings.lr, "momentum": settings.momentum})
        others = [group for group in self.param_groups if group["kind"] != "matrix"]
        betas = (settings.beta1, settings.beta2)
        self._adamw = (
            torch.optim.AdamW(others, lr=settings.lr, betas=betas, eps=settings.eps, fused=True) if others else None
        )
        if self._adamw is not None:
            self._adamw.param_groups = others  # the same dicts: a rate set here is set there
            for group in others:
                for key, value in self._adamw.defaults.items():
                    group.setdefault(key, value)
            self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyrefly: ignore  (torch's other form takes a closure; ours refuses)
        """One update of every parameter that has a gradient."""
        if self._adamw is not None:
            self._adamw.step()
        for group in self.param_groups:
            if group["kind"] == "matrix":
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, parts in zip(group["params"], group["parts"], strict=True):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            direction = parameter.grad.lerp(buffer, group["momentum"])  # Nesterov's look ahead
            for weight, wanted in zip(parameter.chunk(parts), direction.chunk(parts), strict=True):
                stacks[wide_shape(wanted)].append((weight, wanted))
        for members in stacks.values():
            steps = orthogonalized(torch.stack([_wide(wanted) for _, wanted in members]))
            for (weight, _), step in zip(members, steps, strict=True):
                rows, columns = weight.shape
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(step if rows <= columns else step.T, alpha=group["lr"] * max(1.0, rows / columns) ** 0.5)


def wide_shape(matrix: Tensor) -> tuple[int, int]:
    """The shape with the shorter side first."""
    rows, columns = matrix.shape
    return min(rows, columns), max(rows, columns)


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def orthogonalized(matrices: Tensor) -> Tensor:
    """Each matrix with its singular values near 1, in fp32; (N, rows, columns) with rows <= columns [Jordan 2024].

    Computed in bf16, which this iteration forgives.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)
