"""Non-finite losses and gradients: the update is not applied, the batch is named, and a row of them ends the run."""

import math

import torch
from torch import nn

from quillgpt.errors import NonFiniteError

LIMIT_IN_A_ROW = 3
ADVICE = "the last good checkpoint is intact; lower --lr, raise --warmup-steps, or try --dtype fp32"


class Guard:
    """Counts steps in a row whose update could not be applied."""

    def __init__(self, in_a_row: int = 0) -> None:
        self.in_a_row = in_a_row

    def allows(self, *, loss: float, gradient_norm: float, scale: float | None) -> bool:
        """Whether this step's update may be applied.

        With an fp16 loss scale, infinite gradients are how the scaler finds its scale, and do not count while the loss
        is finite and the scale at least 1.
        """
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self.in_a_row = 0
            return True
        is_search = scale is not None and scale >= 1.0 and math.isfinite(loss)
        if not is_search:
            self.in_a_row += 1
        return False

    def message(self, *, step: int, position: int, tokens: int, loss: float, gradient_norm: float) -> str:
        """The line that names a refused batch."""
        what = f"loss {loss:.4g}, gradient norm {gradient_norm:.4g}"
        where = f"step {step}, tokens {position:,} to {position + tokens:,} of the training order"
        return f"{where}: {what}: update not applied ({self.in_a_row} of {LIMIT_IN_A_ROW} in a row)"

    def stop_if_hopeless(self, message: str) -> None:
        """Raise `NonFiniteError` at the limit."""
        if self.in_a_row >= LIMIT_IN_A_ROW:
            raise NonFiniteError(f"{message}; stopping: {ADVICE}")


def stop_unless_finite(held_out_loss: float, *, step: int) -> None:
    """Raise `NonFiniteError` for a held-out loss that is not a number: then the weights are not either."""
    if not math.isfinite(held_out_loss):
        raise NonFiniteError(f"step {step}: held-out loss {held_out_loss:.4g}; stopping: {ADVICE}")


def check_weights(model: nn.Module, *, step: int) -> None:
    """Refuse to save weights that are not finite; a `NonFiniteError` names the first."""
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise NonFiniteError(f"step {step}: {name} is not finite, so nothing is saved; stopping: {ADVICE}")
