"""Muon for the matrices of the blocks, AdamW with its own learning rates for all other parameters [Jordan 2024].

Muon replaces the momentum by a matrix with the same singular vectors and all singular values close to 1. Newton-Schulz
iterations compute it with matrix products only. Matrices of equal shape are stacked and iterated together: for small
ones many products cost more in calls than in arithmetic (benchmarks/train_speed.py muon).
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from quillgpt.config import OptimConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of a x + b x^3 + c x^5, steep at 0: five iterations map (0.01, 1] to about 0.7 to 1.2"""
ITERATIONS = 5
EPSILON = 1e-7

HEAD, BLOCKS, GATES, QKV = "head.", "blocks.", "value_embeddings.gates.", "attention.qkv.weight"


def build(parameters: list[tuple[str, nn.Parameter]], settings: OptimConfig) -> torch.optim.Optimizer:
    """Muon for the matrices of the blocks; AdamW for embeddings, head, and parameters with fewer than two axes."""
    groups: dict[str, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in parameters:
        groups[_kind(name, parameter)].append((name, parameter))
    rates = {"embedding": settings.embedding_lr, "head": settings.head_lr, "scalar": settings.scalar_lr}
    return MuonWithAdamW(
        [
            {
                "params": [parameter for _, parameter in members],
                "kind": kind,
                "parts": [3 if name.endswith(QKV) else 1 for name, _ in members],  # each of q, k, v has its own step
                "lr_ratio": (rates.get(kind) or settings.lr) / settings.lr if settings.lr else 1.0,
                "lr": rates.get(kind) or settings.lr,
                "weight_decay": settings.weight_decay if kind == "matrix" else 0.0,
            }
            for kind, members in groups.items()
        ],
        settings,
    )


def _kind(name: str, parameter: nn.Parameter) -> str:
    if parameter.dim() < 2 or name.startswith(GATES):
        return "scalar"
    if name.startswith(HEAD):
        return "head"
    return "matrix" if name.startswith(BLOCKS) else "embedding"


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for groups of kind "matrix", AdamW for the others, in one object, as loss scalers and wrappers expect.

    The state of a parameter is `momentum_buffer`, or AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], settings: OptimConfig) -> None:
        super().__init__(groups, {"lr": settings.lr, "momentum": settings.momentum})
        others = [group for group in self.param_groups if group["kind"] != "matrix"]
        self._adamw: torch.optim.AdamW | None = None
        if others:
            betas = (settings.beta1, settings.beta2)
            self._adamw = torch.optim.AdamW(others, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)
            self._adamw.param_groups = others  # the same dicts: a rate set here is set there
            for group in others:
                group |= self._adamw.defaults | group
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
        stacks: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, parts in zip(group["params"], group["parts"], strict=True):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(buffer, group["momentum"])  # Nesterov momentum
            for weight, part in zip(parameter.chunk(parts), update.chunk(parts), strict=True):
                stacks[_wide(part).shape].append((weight, _wide(part)))
        for members in stacks.values():
            steps = orthogonalize(torch.stack([part for _, part in members]))
            for (weight, _), step in zip(members, steps, strict=True):
                rows, columns = weight.shape
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(step if rows <= columns else step.T, alpha=group["lr"] * max(1.0, rows / columns) ** 0.5)


def _wide(matrix: Tensor) -> Tensor:
    """The matrix or its transpose, with at least as many columns as rows."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def orthogonalize(matrices: Tensor) -> Tensor:
    """The matrices with all singular values near 1, in their dtype; (N, rows, columns), rows <= columns [Jordan 2024].

    Newton-Schulz iterations in bf16, which is precise enough for them.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)
