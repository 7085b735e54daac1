"""One step: the loss of `TrainingStep`, the seeds of its dropout, and fp16's loss scale."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensor_memory import TensorMemory
from torch import Tensor
from torch.nn import functional as F

from quillgpt import checkpoint
from quillgpt.config import ModelConfig, RunConfig, updated
from quillgpt.data.held_out import IGNORED_TARGET
from quillgpt.errors import NonFiniteError
from quillgpt.model.gpt import GPT
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.train import loop, update
from quillgpt.train.loop import train
from quillgpt.train.resolve import Choices
from quillgpt.train.step import TrainingStep, derived_seed

SHAPE = ModelConfig(n_layer=2, n_head=2, n_embd=16, context_length=12, vocab_size=101)
B, T, V = 5, 12, 101
WHOLE = 1 << 26


def new_model(dtype: torch.dtype = torch.float64, **settings: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(ModelConfig(**(vars(SHAPE) | settings))).to(dtype)


def batch() -> tuple[Tensor, Tensor]:
    """Tokens and targets, a third of them masked, one row whole."""
    generator = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(V, (2, B, T), generator=generator)
    targets[torch.rand(B, T, generator=generator) < 1 / 3] = IGNORED_TARGET
    targets[3] = IGNORED_TARGET
    return tokens, targets


def gradients_of(model: GPT) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("chunk_elements", [WHOLE, 7 * V, 3 * V, V, 1])
def test_loss_and_gradients_are_those_of_cross_entropy_whole_or_in_chunks(chunk_elements: int) -> None:
    tokens, targets = batch()
    model = new_model()
    loss_sum, count = TrainingStep(model, chunk_elements=chunk_elements)(tokens, targets)
    loss_sum.backward()

    reference = new_model()
    kept = targets != IGNORED_TARGET
    wanted = F.cross_entropy(reference(tokens)[kept], targets[kept], reduction="sum")
    wanted.backward()
    assert count.item() == kept.sum().item()
    assert loss_sum.item() == pytest.approx(wanted.item(), rel=1e-12)
    gradients, wanted_gradients = gradients_of(model), gradients_of(reference)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=1e-12, atol=1e-12, msg=name)


def test_a_batch_without_targets_has_no_loss_and_no_gradient() -> None:
    model = new_model()
    loss_sum, count = TrainingStep(model, chunk_elements=3 * V)(batch()[0], torch.full((B, T), IGNORED_TARGET))
    loss_sum.backward()
    assert (loss_sum.item(), count.item()) == (0.0, 0)
    assert all(gradient.abs().max() == 0 for gradient in gradients_of(model).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_loss_of_short_numbers_is_summed_in_float32(dtype: torch.dtype) -> None:
    loss_sum, _ = TrainingStep(new_model(dtype), chunk_elements=WHOLE)(*batch())
    assert loss_sum.dtype == torch.float32


def test_in_chunks_the_logits_of_all_tokens_never_exist() -> None:
    large_vocabulary, padded, chunk_tokens = 2000, 2048, 6  # logits are far larger than anything else here
    largest, peak = {}, {}
    for repeats in (1, 4):
        tokens, targets = (part.repeat(repeats, 1) for part in batch())
        model = new_model(torch.float32, vocab_size=large_vocabulary, n_embd=4)
        step = TrainingStep(model, chunk_elements=chunk_tokens * large_vocabulary)
        with TensorMemory(model.parameters()) as memory:
            step(tokens, targets)[0].backward()
        largest[repeats], peak[repeats] = memory.largest, memory.peak_bytes
    assert largest == {1: chunk_tokens * padded, 4: chunk_tokens * padded}
    all_logits = 4 * 4 * B * T * padded
    assert peak[4] < all_logits / 4
    assert peak[4] - peak[1] < 0.1 * 3 * all_logits / 4  # what grows with the tokens is not as wide as the vocabulary


# Seeds


def test_seeds_differ_between_neighbours_and_are_63_bits() -> None:
    near = [0, 1, 2, 3, 1000]
    seeds = [derived_seed(*numbers) for numbers in itertools.product([0, 1, 1337, 2**63 - 1], near, near, near)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.manual_seed(max(seeds))


GOLDEN = {
    (1337, 0, 0, 0): 2_080_101_245_008_761_343,
    (1337, 1, 0, 0): 8_356_982_528_368_003_767,
    (1337, 0, 1, 0): 305_215_073_697_828_449,
    (1337, 0, 0, 1): 5_940_775_395_397_968_717,
    (2**63 - 1, 10**6, 63, 1023): 520_283_657_239_649_452,
}


@pytest.mark.parametrize(("numbers", "seed"), GOLDEN.items())
def test_seeds_are_the_same_for_ever(numbers: tuple[int, ...], seed: int) -> None:
    assert derived_seed(*numbers) == seed


def splitmix(numbers: list[int]) -> int:
    """The mixing of `derived_seed` with numpy's 64-bit arithmetic, as an independent reading of the paper."""
    import numpy as np

    with np.errstate(over="ignore"):
        mixed = np.uint64(0)
        for value in numbers:
            mixed = mixed + np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = mixed ^ (mixed >> np.uint64(31))
        return int(mixed >> np.uint64(1))


@pytest.mark.parametrize("numbers", [[0, 0, 0, 0], [1337, 5, 2, 1], [2**63 - 1, 10**9, 4096, 10**5]])
def test_seeds_are_mixed_as_the_paper_says(numbers: list[int]) -> None:
    assert derived_seed(*numbers) == splitmix(numbers)


def choices(**changes: Any) -> Choices:
    return replace(
        Choices(
            device="cpu",
            dtype="fp32",
            threads=1,
            compile=False,
            compile_backend="inductor",
            matmul_precision="high",
            dist_backend="gloo",
            rows=4,
            batch_size=1,
            world_size=1,
        ),
        **changes,
    )


def losses_with_dropout(step: int, rank: int) -> list[float]:
    """The losses of the same row in four micro-batches; only the dropout can make them differ."""
    model = new_model(torch.float32, dropout=0.5)
    wrapped = update.wrap(model, choices())
    seen: list[float] = []

    def forward(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        result = wrapped.forward(tokens, targets)
        seen.append(result[0].item())
        return result

    tokens = torch.arange(T).repeat(4, 1)
    numbers = {"target_count": 4 * T, "seed": 7, "step": step, "rank": rank}
    update.gradients(replace(wrapped, forward=forward), tokens, tokens, choices=choices(), **numbers)
    return seen


def test_dropout_differs_between_micro_batches_ranks_and_steps_and_repeats_exactly() -> None:
    torch.manual_seed(99)
    first = losses_with_dropout(3, 0)
    torch.manual_seed(11)  # what was drawn before does not matter
    assert losses_with_dropout(3, 0) == first
    every = first + losses_with_dropout(3, 1) + losses_with_dropout(4, 0)
    assert len(set(every)) == 12


def test_without_dropout_nothing_is_seeded() -> None:
    wrapped = update.wrap(new_model(torch.float32), choices())
    tokens = torch.zeros(4, T, dtype=torch.int64)
    before = torch.get_rng_state()
    update.gradients(wrapped, tokens, tokens, choices=choices(), target_count=1, seed=7, step=0, rank=0)
    assert torch.equal(torch.get_rng_state(), before)


# fp16's loss scale, on a CPU, which has no fp16 training but computes it


@pytest.fixture
def fp16_run(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run that trains in fp16 although this is a CPU."""
    resolve = loop.resolve

    def resolve_to_fp16(*args: Any) -> Any:
        resolved, reasons = resolve(*args)
        return replace(resolved, dtype="fp16"), reasons

    monkeypatch.setattr(loop, "resolve", resolve_to_fp16)
    return small_run


def state_of(config: RunConfig) -> dict[str, Any]:
    last = checkpoint.committed(RunDirectory(Path(config.train.out)))[-1]
    return last.read_json(checkpoint.STATE)


def lines_of(config: RunConfig) -> list[dict[str, Any]]:
    return read_metrics(RunDirectory(Path(config.train.out)).metrics)


def with_scale(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Loss scales that begin elsewhere or grow sooner."""
    real = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: real(device, **settings))


def test_fp16_trains_as_fp32_does(fp16_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(fp16_run)
    monkeypatch.undo()
    full = updated(fp16_run, {"out": str(tmp_path / "fp32")}, where="test")
    train(full)
    assert [line["loss"] for line in lines_of(fp16_run)] == pytest.approx(
        [line["loss"] for line in lines_of(full)], rel=0.02
    )
    assert lines_of(fp16_run)[0]["gradient_norm"] == pytest.approx(lines_of(full)[0]["gradient_norm"], rel=0.02)


def test_the_loss_scale_is_saved_and_a_resumed_run_has_the_same_bits(
    fp16_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scale(monkeypatch, init_scale=2.0**10, growth_interval=4)
    settings = {"schedule": "constant", "eval_every": 0}
    whole = updated(fp16_run, {**settings, "out": str(tmp_path / "whole")}, where="test")
    train(whole)
    train(updated(fp16_run, {**settings, "steps": 10}, where="test"))
    assert state_of(fp16_run)["scaler"]["scale"] == 2.0**12
    assert state_of(fp16_run)["scaler"]["_growth_tracker"] == 2
    train(updated(fp16_run, settings, where="test"))
    assert state_of(fp16_run)["scaler"] == state_of(whole)["scaler"]
    assert [line["loss"] for line in lines_of(fp16_run)] == [line["loss"] for line in lines_of(whole)]


def test_updates_skipped_while_the_scale_is_found_do_not_count(
    fp16_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scale(monkeypatch, init_scale=2.0**40)
    outcome = train(updated(fp16_run, {"steps": 40}, where="test"))
    lines = lines_of(fp16_run)
    skipped = [line["step"] for line in lines if line.get("skipped")]
    assert len(skipped) > 3  # more in a row than would end a run otherwise
    assert skipped == list(range(1, len(skipped) + 1))
    assert state_of(fp16_run)["scaler"]["scale"] == 2.0 ** (40 - len(skipped))
    assert state_of(fp16_run)["non_finite_in_a_row"] == 0
    assert outcome.step == 40
    assert math.isfinite(outcome.held_out.loss)
    assert lines[-1]["loss"] < lines[0]["loss"]


def spoiled(monkeypatch: pytest.MonkeyPatch, *, loss: float, gradient: float) -> None:
    """Multiply what `gradients` leaves and returns, at every step."""
    real = loop.gradients

    def gradients(wrapped: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss_sum = real(wrapped, *args, **kwargs)
        for parameter in wrapped.forward.parameters():
            parameter.grad.mul_(gradient)
        return loss_sum * loss

    monkeypatch.setattr(loop, "gradients", gradients)


def test_a_loss_that_is_not_finite_counts_also_with_a_loss_scale(
    fp16_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, loss=math.nan, gradient=math.nan)
    with pytest.raises(NonFiniteError, match=r"step 2, .*3 of 3 in a row"):
        train(fp16_run)


def test_infinite_gradients_count_once_the_scale_is_below_1(
    fp16_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scale(monkeypatch, init_scale=8.0)
    spoiled(monkeypatch, loss=1.0, gradient=math.inf)
    with pytest.raises(NonFiniteError, match=r"step 6, .*3 of 3 in a row"):  # 8, 4, 2, 1 are a search; 1/2 is not
        train(fp16_run)
