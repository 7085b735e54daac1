"""Number formats: the dtypes of the settings, autocast, and where a custom backward pass is used."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Compute matrix products in `dtype`; no effect for fp32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.partition(":")[0], dtype=dtype)


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of x; some devices, such as meta, do not support it."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a product of x is computed: its own, unless autocast replaces it."""
    is_cast = is_autocast(x) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if is_cast else x.dtype


def at_least_fp32(x: Tensor) -> Tensor:
    """x in float32, or in its own dtype if that is wider; for sums and powers of what autocast computed in 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def uses_custom_backward(x: Tensor) -> bool:
    """Whether an operation on x should use its custom backward pass: in eager training only.

    Autograd differentiates operation by operation, for RMSNorm or a rotation in eight passes over memory; the custom
    backward pass needs a third of that (docs/speed.md). A compiler fuses them anyway, and an exporter needs torch's own
    operations.
    """
    return torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode (no dropout) inside the `with` block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
