"""Where a derivative written by hand is of use: in eager training, where torch would take one pass over memory a step.

torch derives each operation by itself: RMSNorm in eight, a rotation in eight, and more than that backwards. A small
network spends as long on those as on its matrix products. The same formulas with their derivative in one piece take a
third of the passes (docs/speed.md). A compiler makes one piece of them anyway, and an exporter wants to see torch's own
operations, so both are given the formula.
"""

import torch
from torch import Tensor


def pays_by_hand(x: Tensor) -> bool:
    """Whether gradients of x are recorded, with nobody but torch's eager mode looking on."""
    return torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()
