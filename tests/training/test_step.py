"""One step: the loss of `ModelWithLoss`, the seeds of its dropout, the guarded update, and fp16's loss scale."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quillgpt import checkpoint
from quillgpt.config import ModelConfig, OptimConfig, RunConfig
from quillgpt.errors import NonFiniteError
from quillgpt.model.gpt import GPT
from quillgpt.model.loss import IGNORED_TARGET
from quillgpt.optim import build_optimizer
from quillgpt.training import loop
from quillgpt.training.loop import train
from quillgpt.training.step import (
    LIMIT_IN_A_ROW,
    Guard,
    ModelWithLoss,
    apply_update,
    derived_seed,
    gradients,
    wrap,
)
from small_runs import RUNTIME, changed, column, lines_of, newest
from tensor_memory import TensorMemory

SHAPE = ModelConfig(n_layer=2, n_head=2, n_embd=16, context_length=12, vocab_size=101)
B, T, V = 5, 12, 101
ONE_CHUNK = 1 << 26


def new_model(dtype: torch.dtype = torch.float64, **settings: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(replace(SHAPE, **settings)).to(dtype)


def batch() -> tuple[Tensor, Tensor]:
    """Tokens and targets; a third of the targets is ignored, and an entire sequence."""
    generator = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(V, (2, B, T), generator=generator)
    targets[torch.rand(B, T, generator=generator) < 1 / 3] = IGNORED_TARGET
    targets[3] = IGNORED_TARGET
    return tokens, targets


def gradients_of(model: GPT) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


# Loss


def test_loss_and_gradients_are_those_of_cross_entropy_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the operations of torch that are compiled."""
    tokens, targets = batch()
    reference = new_model()
    counted = targets != IGNORED_TARGET
    expected = F.cross_entropy(reference(tokens)[counted], targets[counted], reduction="sum")
    expected.backward()
    for chunk_elements, is_compiling in itertools.product((ONE_CHUNK, 7 * V, 3 * V, V, 1), (False, True)):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda value=is_compiling: value)
        model = new_model()
        loss_sum, count = ModelWithLoss(model, chunk_elements=chunk_elements)(tokens, targets)
        loss_sum.backward()
        assert count.item() == counted.sum().item()
        assert loss_sum.item() == pytest.approx(expected.item(), rel=1e-12), chunk_elements
        torch.testing.assert_close(gradients_of(model), gradients_of(reference), rtol=1e-12, atol=1e-12)


def test_a_batch_without_targets_has_no_loss_and_no_gradient() -> None:
    model = new_model()
    loss_sum, count = ModelWithLoss(model, chunk_elements=3 * V)(batch()[0], torch.full((B, T), IGNORED_TARGET))
    loss_sum.backward()
    assert (loss_sum.item(), count.item()) == (0.0, 0)
    assert all(gradient.abs().max() == 0 for gradient in gradients_of(model).values())


def test_losses_of_16_and_32_bits_are_summed_in_float32() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        loss_sum, _ = ModelWithLoss(new_model(dtype), chunk_elements=ONE_CHUNK)(*batch())
        assert loss_sum.dtype == torch.float32, dtype


def test_in_chunks_the_logits_of_all_tokens_never_exist() -> None:
    large_vocabulary, padded, chunk_tokens = 2000, 2048, 6  # logits are far larger than anything else here
    largest, peak = {}, {}
    for repeats in (1, 4):
        tokens, targets = (part.repeat(repeats, 1) for part in batch())
        model = new_model(torch.float32, vocab_size=large_vocabulary, n_embd=4)
        step = ModelWithLoss(model, chunk_elements=chunk_tokens * large_vocabulary)
        with TensorMemory(model.parameters()) as memory:
            step(tokens, targets)[0].backward()
        largest[repeats], peak[repeats] = memory.largest, memory.peak_bytes
    assert largest == {1: chunk_tokens * padded, 4: chunk_tokens * padded}
    all_logits = 4 * 4 * B * T * padded
    assert peak[4] < all_logits / 4
    assert peak[4] - peak[1] < 0.1 * 3 * all_logits / 4  # what grows with the tokens is not as wide as the vocabulary


def test_the_residual_stream_has_16_bits_in_bf16_only_and_gradients_have_32() -> None:
    for dtype, stream in {"bf16": torch.bfloat16, "fp16": torch.float32, "fp32": torch.float32}.items():
        model = new_model(torch.float32)
        seen: list[torch.dtype] = []
        model.blocks[1].register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].dtype))
        one_step(model, dtype=dtype)
        assert set(seen) == {stream}, dtype
        assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def one_step(model: GPT, *, dtype: str = "fp32") -> None:
    runtime, tokens = replace(RUNTIME, dtype=dtype), torch.zeros(4, T, dtype=torch.int64)
    gradients(wrap(model, runtime), tokens, tokens, runtime=runtime, target_count=1, seed=7, step=0, rank=0)


# Seeds


def test_seeds_differ_between_neighbours_and_have_63_bits() -> None:
    near = [0, 1, 2, 3, 1000]
    seeds = [derived_seed(*numbers) for numbers in itertools.product([0, 1, 1337, 2**63 - 1], near, near, near)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.manual_seed(max(seeds))


def splitmix(numbers: tuple[int, ...]) -> int:
    """The formula of `derived_seed` in numpy's 64-bit arithmetic, an independent reading of the paper."""
    with np.errstate(over="ignore"):
        state = np.uint64(0)
        for value in numbers:
            state = state + np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
        return int(state >> np.uint64(1))


def test_seeds_are_those_of_splitmix64_and_never_change() -> None:
    golden = {
        (1337, 0, 0, 0): 2_080_101_245_008_761_343,
        (1337, 1, 0, 0): 8_356_982_528_368_003_767,
        (1337, 0, 1, 0): 305_215_073_697_828_449,
        (1337, 0, 0, 1): 5_940_775_395_397_968_717,
        (2**63 - 1, 10**6, 63, 1023): 520_283_657_239_649_452,
    }
    others = [(0, 0, 0, 0), (1337, 5, 2, 1), (2**63 - 1, 10**9, 4096, 10**5)]
    assert {numbers: derived_seed(*numbers) for numbers in golden} == golden
    assert {n: derived_seed(*n) for n in (*golden, *others)} == {n: splitmix(n) for n in (*golden, *others)}


def losses_with_dropout(step: int, rank: int) -> list[float]:
    """The losses of the same sequence in four micro-batches; only dropout can make them differ."""
    wrapped = wrap(new_model(torch.float32, dropout=0.5), RUNTIME)
    seen: list[float] = []

    def forward(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        result = wrapped.forward(tokens, targets)
        seen.append(result[0].item())
        return result

    tokens = torch.arange(T).repeat(4, 1)
    numbers = {"target_count": 4 * T, "seed": 7, "step": step, "rank": rank}
    gradients(replace(wrapped, forward=forward), tokens, tokens, runtime=RUNTIME, **numbers)
    return seen


def test_dropout_differs_between_micro_batches_ranks_and_steps_and_repeats_exactly() -> None:
    torch.manual_seed(99)
    first = losses_with_dropout(3, 0)
    torch.manual_seed(11)  # earlier random numbers do not matter
    assert losses_with_dropout(3, 0) == first
    assert len({*first, *losses_with_dropout(3, 1), *losses_with_dropout(4, 0)}) == 12


def test_without_dropout_nothing_is_seeded() -> None:
    model = new_model(torch.float32)
    before = torch.get_rng_state()
    one_step(model)
    assert torch.equal(torch.get_rng_state(), before)


# Update


def update(gradient_clip: float) -> tuple[float, dict[str, Tensor]]:
    """The norm that an update returns, and the gradients that the optimizer gets."""
    model = new_model(torch.float32)
    optimizer = build_optimizer(model, OptimConfig())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    given: dict[str, Tensor] = {}
    optimizer.register_step_pre_hook(
        lambda *_: given.update({name: gradient.clone() for name, gradient in gradients_of(model).items()})
    )
    rates = {"lr": 1e-3, "momentum": 0.9, "gradient_clip": gradient_clip}
    norm, is_applied = apply_update(wrap(model, RUNTIME), optimizer, Guard(), loss=1.0, **rates)
    assert is_applied
    assert gradients_of(model) == {}
    return norm, given


def test_the_norm_is_that_of_all_gradients_and_0_clips_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    count = sum(parameter.numel() for parameter in new_model().parameters())
    norm, given = update(1.0)
    assert norm == pytest.approx(0.5 * count**0.5, rel=1e-5)
    assert sum(gradient.square().sum().item() for gradient in given.values()) == pytest.approx(1.0, rel=1e-3)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_, **__: pytest.fail("clipped"))
    norm, given = update(0.0)
    assert norm == pytest.approx(0.5 * count**0.5, rel=1e-5)
    assert all((gradient == 0.5).all() for gradient in given.values())


def test_an_infinite_gradient_counts_unless_the_loss_scale_is_being_found() -> None:
    guard = Guard()
    for _ in range(2 * LIMIT_IN_A_ROW):
        assert not guard.allows(loss=2.0, grad_norm=math.inf, scale=65536.0)
    assert guard.in_a_row == 0
    assert not guard.allows(loss=2.0, grad_norm=math.inf, scale=0.5)
    assert not guard.allows(loss=math.nan, grad_norm=1.0, scale=65536.0)
    assert guard.in_a_row == 2
    assert guard.allows(loss=2.0, grad_norm=1.0, scale=0.5)
    assert guard.in_a_row == 0


# fp16's loss scale, on a CPU: it computes fp16, although `resolve` does not train in it there


@pytest.fixture
def fp16_run(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run that trains in fp16."""
    resolve = loop.resolve

    def resolve_to_fp16(*arguments: Any) -> Any:
        runtime, reasons = resolve(*arguments)
        return replace(runtime, dtype="fp16"), reasons

    monkeypatch.setattr(loop, "resolve", resolve_to_fp16)
    return small_run


def state_of(config: RunConfig) -> Mapping[str, Any]:
    return newest(config).read_json(checkpoint.STATE)


def with_scaler(patch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Loss scales that begin at another value or grow sooner."""
    real = torch.amp.GradScaler
    patch.setattr(torch.amp, "GradScaler", lambda device: real(device, **settings))


def test_only_fp16_has_a_loss_scale() -> None:
    scalers = {dtype: wrap(new_model(), replace(RUNTIME, dtype=dtype)).scaler for dtype in ("fp32", "bf16", "fp16")}
    assert [dtype for dtype, scaler in scalers.items() if scaler is not None] == ["fp16"]


def test_fp16_trains_as_fp32_does(fp16_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(fp16_run)
    monkeypatch.undo()
    full = changed(fp16_run, out=str(tmp_path / "fp32"))
    train(full)
    assert column(fp16_run, "train_loss") == pytest.approx(column(full, "train_loss"), rel=0.02)
    assert column(fp16_run, "grad_norm")[0] == pytest.approx(column(full, "grad_norm")[0], rel=0.02)


def test_the_loss_scale_is_saved_and_a_resumed_run_has_the_same_bits(
    fp16_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scaler(monkeypatch, init_scale=2.0**10, growth_interval=4)
    config = changed(fp16_run, schedule="constant", eval_every=0)
    once = changed(config, out=str(tmp_path / "once"))
    train(once)
    train(changed(config, steps=10))
    assert state_of(config)["scaler"]["scale"] == 2.0**12
    assert state_of(config)["scaler"]["_growth_tracker"] == 2
    train(config)
    assert state_of(config)["scaler"] == state_of(once)["scaler"]
    assert column(config, "train_loss") == column(once, "train_loss")


def test_updates_skipped_while_the_scale_is_found_do_not_count(
    fp16_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scaler(monkeypatch, init_scale=2.0**40)
    outcome = train(changed(fp16_run, steps=40))
    losses = column(fp16_run, "train_loss")
    skipped = [line["step"] for line in lines_of(fp16_run) if line.get("skipped")]
    assert len(skipped) > 3  # more in a row than would end a run otherwise
    assert skipped == list(range(1, len(skipped) + 1))
    assert state_of(fp16_run)["scaler"]["scale"] == 2.0 ** (40 - len(skipped))
    assert state_of(fp16_run)["non_finite_in_a_row"] == 0
    assert math.isfinite(outcome.validation.loss)
    assert losses[-1] < losses[0]


def spoil(patch: pytest.MonkeyPatch, *, loss: float, gradient: float) -> None:
    """Multiply what `gradients` leaves and returns, at every step."""
    real = loop.gradients

    def spoiled(wrapped: Any, *arguments: Any, **numbers: Any) -> Tensor:
        loss_sum = real(wrapped, *arguments, **numbers)
        for parameter in wrapped.forward.parameters():
            parameter.grad.mul_(gradient)
        return loss_sum * loss

    patch.setattr(loop, "gradients", spoiled)


def test_a_non_finite_loss_counts_also_with_a_loss_scale(fp16_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, loss=math.nan, gradient=math.nan)
    with pytest.raises(NonFiniteError, match=r"step 2, .*3 of 3 in a row"):
        train(fp16_run)


def test_infinite_gradients_count_once_the_scale_is_below_1(
    fp16_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scaler(monkeypatch, init_scale=8.0)
    spoil(monkeypatch, loss=1.0, gradient=math.inf)
    with pytest.raises(NonFiniteError, match=r"step 6, .*3 of 3 in a row"):  # 8, 4, 2, 1 are a search; 1/2 is not
        train(fp16_run)
