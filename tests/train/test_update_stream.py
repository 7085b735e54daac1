"""What a step computes in: the stream's dtype by the choice, and the norm of gradients that are not clipped."""

from typing import Any

import pytest
import torch
from test_step import T, V, choices, new_model
from torch import Tensor

from quillgpt.config import OptimConfig
from quillgpt.optim import build_optimizer
from quillgpt.train import update
from quillgpt.train.guard import Guard


@pytest.mark.parametrize(
    ("dtype", "stream"), [("bf16", torch.bfloat16), ("fp16", torch.float32), ("fp32", torch.float32)]
)
def test_the_residual_stream_is_short_in_bf16_only(dtype: str, stream: torch.dtype) -> None:
    model = new_model(torch.float32)
    seen: list[torch.dtype] = []
    model.blocks[1].register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    wrapped = update.wrap(model, choices(dtype=dtype))
    tokens = torch.randint(V, (4, T))
    update.gradients(wrapped, tokens, tokens, choices=choices(dtype=dtype), target_count=1, seed=0, step=0, rank=0)
    assert set(seen) == {stream}
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def updated(gradient_clip: float) -> tuple[float, dict[str, Tensor]]:
    """The norm that an update tells, and the gradients as the optimizer gets them."""
    model = new_model(torch.float32)
    wrapped, optimizer = update.wrap(model, choices()), build_optimizer(model, OptimConfig())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    given: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        given.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})

    optimizer.register_step_pre_hook(keep)
    rates = {"lr": 1e-3, "momentum": 0.9, "gradient_clip": gradient_clip}
    norm, applied = update.apply_update(wrapped, optimizer, Guard(), loss=1.0, **rates)
    assert applied
    return norm, given


def test_the_norm_is_that_of_all_gradients_and_0_clips_nothing() -> None:
    count = sum(parameter.numel() for parameter in new_model().parameters())
    norm, given = updated(0.0)
    assert norm == pytest.approx(0.5 * count**0.5, rel=1e-5)
    assert all((gradient == 0.5).all() for gradient in given.values())
    norm, given = updated(1.0)
    assert norm == pytest.approx(0.5 * count**0.5, rel=1e-5)
    assert sum(gradient.square().sum().item() for gradient in given.values()) == pytest.approx(1.0, rel=1e-3)


def test_without_clipping_no_gradient_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_, **__: pytest.fail("clipped"))
    assert updated(0.0)[0] > 0
