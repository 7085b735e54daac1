"""Weights as they are; in bf16 on a CPU, each number of rows by the kernel that is fastest for it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_ROWS = 64
"""up to here a product by weights in oneDNN's own order is faster than one that orders them on the way"""


def as_plain(linear: nn.Linear) -> nn.Module:
    """The layer itself, unless it is in bf16 on a CPU: fp32 texts stay what they are, bit for bit."""
    is_slow = linear.weight.dtype == torch.bfloat16 and linear.weight.device.type == "cpu"
    return BrainLinear(linear) if is_slow and torch.backends.mkldnn.is_available() else linear


class BrainLinear(nn.Module):
    """x W^T + b in bf16 on a CPU.

    torch gives bf16 products to oneDNN, which is made for many rows. One row is half as fast there as by torch's own
    product of a matrix and a vector. A few rows are faster when the weights were ordered for oneDNN before, which takes
    as much memory again and is done when a few rows first come.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._ordered: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.numel() // x.shape[-1]
        if torch.compiler.is_compiling():
            return self._for_a_compiler(x) if rows == 1 else F.linear(x, self.weight, self.bias)
        if rows > FEW_ROWS:
            return F.linear(x, self.weight, self.bias)
        if rows == 1:
            with OneRow():
                return F.linear(x, self.weight, self.bias)
        if self._ordered is None:
            self._ordered = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)
        return torch.ops.mkldnn._linear_pointwise(x, self._ordered, self.bias, "none", [], "")

    def _for_a_compiler(self, row: Tensor) -> Tensor:
        """Written out, so that it becomes one loop over the weights that adds up in fp32."""
        y = (self.weight.float() * row.reshape(-1).float()).sum(dim=-1)
        y = y if self.bias is None else y + self.bias.float()
        return y.to(row.dtype).view(*row.shape[:-1], -1)


class OneRow:
    """While this is open, torch multiplies by itself and does not ask oneDNN. The switch is the process's."""

    def __enter__(self) -> None:
        self._was_enabled = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch._C._set_mkldnn_enabled(self._was_enabled)
