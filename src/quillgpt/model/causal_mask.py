"""Who may see whom: no position sees a later one."""

import torch
from torch import Tensor


def causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """True where a query may look, (new, total), the queries being the last positions.

    causal_mask(2, 4, ...) is   1 1 1 0    position 2 sees 0, 1, 2
                                1 1 1 1    position 3 sees all
    """
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(diagonal=total - new)
