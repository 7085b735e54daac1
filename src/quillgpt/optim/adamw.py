"""AdamW with decoupled weight decay on matrices only [Loshchilov 2019, Algorithm 2; Brown 2020, appendix B]."""

import torch
from torch import nn

from quillgpt.config import OptimConfig


def build(parameters: list[tuple[str, nn.Parameter]], settings: OptimConfig) -> torch.optim.Optimizer:
    """AdamW in two groups: matrices and embeddings decay, biases and norm gains do not."""
    matrices = [parameter for _, parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for _, parameter in parameters if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,  # on a CPU one pass over memory, where the loop over tensors makes many
    )
